"""One pixel's colour from its logits: temperature, top-k, top-p, one uniform number."""

import dataclasses

import tensorflow as tf


def draw_uniforms(seeds, length: int, draw=0):
    """The uniform numbers that paint images, each a function of its own image's seed.

    Args:
        seeds: int32[B].
        length: T.
        draw: int or int32[], tells apart several draws for one image.

    Returns:
        float32[B,T] in [0, 1), identical with and without XLA: of one generator, XLA gives the
        same bits but not the same floats, so the floats are made here, 23 bits each.
    """
    bits = tf.map_fn(
        lambda seed: tf.random.stateless_uniform(
            [length], tf.stack([seed, draw]), None, None, tf.uint32, alg="philox"
        ),
        seeds,
        fn_output_signature=tf.TensorSpec([length], tf.uint32),
    )
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32) * 2.0**-23


@dataclasses.dataclass(frozen=True)
class Brush:
    """How colours are chosen from logits.

    Attributes:
        temperature: float32[], positive.
        top_k: int32[], how many of the best tokens stay; 0 keeps all.
        top_p: float32[] in (0, 1], how much probability stays; 1 keeps all.
    """

    temperature: tf.Tensor
    top_k: tf.Tensor
    top_p: tf.Tensor

    @classmethod
    def of(cls, temperature, top_k, top_p) -> "Brush":
        """From numbers or tensors."""
        as_tensor = tf.convert_to_tensor
        return cls(
            as_tensor(temperature, tf.float32),
            as_tensor(top_k, tf.int32),
            as_tensor(top_p, tf.float32),
        )

    def choose(self, logits, uniforms):
        """Tokens int32[B] from logits float32[B,V] and uniforms float32[B]."""
        logits = logits / self.temperature
        # Truncation costs a sort, so it is skipped where it would keep everything.
        logits = tf.cond(
            (self.top_k > 0) | (self.top_p < 1.0),
            lambda: truncate(logits, self.top_k, self.top_p),
            lambda: logits,
        )
        return invert(logits, uniforms)


def truncate(logits, top_k, top_p):
    """Removes unlikely tokens, first by rank, then by probability mass.

    Args:
        logits: float32[B,V].
        top_k: int32[]; 0 keeps all, and of equally likely tokens the lower ones stay.
        top_p: float32[]; the smallest set of best tokens stays whose mass reaches it.

    Returns:
        float32[B,V], -inf where removed. The best token always stays.
    """
    size = logits.shape[-1]
    ordered, order = tf.math.top_k(logits, size)
    kept = tf.range(size) < tf.where(top_k > 0, top_k, size)
    mass = tf.nn.softmax(tf.where(kept, ordered, float("-inf")))
    # Rounding may bring the running sum to 1 before the last token: 1 must still keep all.
    kept &= (tf.cumsum(mass, axis=-1, exclusive=True) < top_p) | (top_p >= 1.0)
    kept = tf.gather(kept, tf.argsort(order), batch_dims=1)
    return tf.where(kept, logits, float("-inf"))


def invert(logits, uniforms):
    """Draws by inverting the cumulative distribution.

    Args:
        logits: float32[B,V].
        uniforms: float32[B] in [0, 1).

    Returns:
        int32[B], never a token of probability zero.
    """
    mass = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    below = tf.cumsum(mass, axis=-1)
    reached = (below > uniforms[:, None] * below[:, -1:]) & (mass > 0)
    return tf.argmax(tf.cast(reached, tf.int32), axis=-1, output_type=tf.int32)
