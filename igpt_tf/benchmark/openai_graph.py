"""The published graph's forward pass, and its sampling loop, which has no cache."""

import tensorflow as tf

from igpt_tf.benchmark import ours
from igpt_tf.benchmark.worker import Order
from igpt_tf.model import ImageGPT

__all__ = ["device_peak_bytes", "logits", "sample"]

device_peak_bytes = ours.device_peak_bytes
_PLACES = 4  # of the T forward passes of the loop; all cost the same


def sample(order: Order):
    """Painting images: for every pixel, the logits of the whole image."""
    model, tokens = ours.build(order), tf.constant(ours.tokens_of(order))
    forward = tf.function(lambda tokens: logits(model, tokens))

    def turn():
        for _ in range(_PLACES):
            tf.random.categorical(forward(tokens)[:, -1], 1).numpy()

    turn.times = order.shape.length / _PLACES
    return turn


def logits(model: ImageGPT, tokens) -> tf.Tensor:
    """Those of our model, with the operations of the published graph.

    A matrix each for queries, keys and values, heads apart; the whole attention square, masked
    afterwards; softmax, norm and quick GELU an operation at a time.

    Args:
        model: A causal `ImageGPT`.
        tokens: int32[B,T].

    Returns:
        float32[B,T,V].

    Source: openai/image-gpt `src/model.py`; its loop is in `src/run.py`.
    """
    h = model.embed(tokens)
    for block in model.blocks:
        h = h + _attention(block.attention, _norm(h, block.attention_norm))
        inner = tf.matmul(_norm(h, block.mlp_norm), block.mlp.input_kernel)
        h = h + tf.matmul(inner * tf.sigmoid(1.702 * inner), block.mlp.output_kernel)
    return tf.matmul(_norm(h, model.final_norm), model.output_embedding, transpose_b=True)


def _norm(x, layer):
    """float32[B,T,D] -> float32[B,T,D]."""
    square = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
    return x * tf.math.rsqrt(square + 1e-5) * layer.scale


def _attention(layer, x):
    """float32[B,T,D] -> float32[B,T,D]."""
    heads, (length, dim) = layer.num_heads, x.shape[1:]
    kernels = tf.split(tf.reshape(layer.qkv_kernel, (dim, 3 * heads, dim // heads)), 3, axis=1)
    query, key, value = (tf.einsum("bsf,fhe->bhse", x, kernel) for kernel in kernels)
    scores = tf.matmul(query, key, transpose_b=True) * (dim // heads) ** -0.5
    visible = tf.linalg.band_part(tf.ones((length, length)), -1, 0)
    scores = scores * visible - 1e10 * (1 - visible)
    weights = tf.exp(scores - tf.reduce_max(scores, axis=-1, keepdims=True))
    weights = weights / tf.reduce_sum(weights, axis=-1, keepdims=True)
    output = tf.reshape(layer.output_kernel, (heads, dim // heads, dim))
    return tf.einsum("bhse,hef->bsf", tf.matmul(weights, value), output)
