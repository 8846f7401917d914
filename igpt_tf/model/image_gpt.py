"""Image GPT: a GPT over the palette tokens of an image, in raster order."""

import math
from collections.abc import Callable

import gin
import keras
from keras import ops

from igpt_tf.errors import InputError
from igpt_tf.model.block import Block, RMSNorm


class ImageGPT(keras.Model):
    """The network of "Generative Pretraining from Pixels".

        h_0     = concat([sos, token_embedding[x_1..x_{T-1}]]) + position_embedding
        h_{l+1} = block_l(h_l)
        logits  = final_norm(h_L) @ output_embedding^T

    Slot i sees token i-1, carries position i and predicts token i. With `causal=False` (the
    paper's BERT models) there is no sos, no shift and no causal mask: slot i sees token i.

    Args:
        image_size: (H, W) in pixels; T = H * W.
        vocabulary_size: Number of palette colours V.
        num_layers: Number of blocks L.
        hidden_dim: Width D, a multiple of `num_heads`.
        num_heads: Attention heads per block.
        causal: True for autoregressive models, False for masked ones.
        remat: Whether the backward pass computes each block again instead of keeping its
            activations: a quarter more time, a fraction of the memory, the same gradients.

    Attributes:
        block_runner: Function (block, h) -> h that runs a block in place of `run_block`, or None.
            Set by a trainer that shares one traced function among the blocks.

    Raises:
        InputError: A size is not positive or `num_heads` does not divide `hidden_dim`.

    Source: paper, sections 2.2 and 2.3; openai/image-gpt `src/model.py`.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        causal: bool = True,
        remat: bool = False,
        name: str = "image_gpt",  # constant: checkpoints name the optimizer's slots after it
    ):
        super().__init__(name=name)
        _check_sizes(*image_size, vocabulary_size, num_layers, hidden_dim, num_heads)
        self.image_size = tuple(image_size)
        self.sequence_length = image_size[0] * image_size[1]
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.causal = causal
        self.remat = remat
        self.block_runner = None
        self.blocks = [
            Block(num_heads, num_layers, causal, name=f"block_{i}") for i in range(num_layers)
        ]
        self.final_norm = RMSNorm(name="final_norm")
        self.build()

    def build(self, input_shape=None):
        """Creates every variable; called once by the constructor."""
        if self.built:
            return
        dim = self.hidden_dim
        self.token_embedding = self._embedding("token_embedding", (self.vocabulary_size, dim), 0.02)
        self.position_embedding = self._embedding(
            "position_embedding", (self.sequence_length, dim), 0.01
        )
        if self.causal:
            self.sos = self._embedding("sos", (dim,), 0.02)
        # Zero, so that the first loss is ln V exactly.
        self.output_embedding = self._embedding(
            "output_embedding", (self.vocabulary_size, dim), 0, autocast=False
        )
        for layer in (*self.blocks, self.final_norm):
            layer.build((None, self.sequence_length, dim))
        self.built = True

    def _embedding(self, name, shape, stddev, **kwargs):
        normal = keras.initializers.RandomNormal(stddev=stddev)
        initializer = normal if stddev else "zeros"
        return self.add_weight(name=name, shape=shape, initializer=initializer, **kwargs)

    def call(self, tokens, masked=None):
        """Predicts every token.

        Args:
            tokens: int32[B,T].
            masked: bool[B,T] or None: where the token embedding is replaced by zero.

        Returns:
            Logits float32[B,T,V]; slot i predicts token i.
        """
        return self.logits(self.hidden_states(tokens, masked)[-1])

    def embed(self, tokens, masked=None):
        """h_0. `tokens` int32[B,T], `masked` bool[B,T] or None -> float[B,T,D]."""
        if self.causal:  # slot i sees token i - 1
            tokens = tokens[:, :-1]
            masked = None if masked is None else masked[:, :-1]
        h = ops.take(self.token_embedding, tokens, axis=0)
        if masked is not None:
            h = ops.where(ops.expand_dims(masked, -1), ops.zeros_like(h), h)
        if self.causal:
            sos = ops.broadcast_to(self.sos, (ops.shape(h)[0], 1, self.hidden_dim))
            h = ops.concatenate([ops.cast(sos, h.dtype), h], axis=1)
        return ops.cast(h + self.position_embedding, self.compute_dtype)

    def hidden_states(self, tokens, masked=None) -> list:
        """h_0 .. h_L before any norm, L + 1 tensors float[B,T,D]."""
        states = [self.embed(tokens, masked)]
        for block in self.blocks:
            states.append(self.run_block(block, states[-1]))
        return states

    def run_block(self, block, h):
        """Runs one block. float[B,T,D] -> float[B,T,D]."""
        if self.block_runner is not None:
            return self.block_runner(block, h)
        # A closure of positional arguments, the one form that keeps its gradients everywhere.
        return keras.remat(lambda h: block(h))(h) if self.remat else block(h)

    def logits(self, h):
        """float[B,T,D] before the final norm -> float32[B,T,V], whatever the compute dtype."""
        return self.token_logits(self.normalised(h))

    def normalised(self, h):
        """The final norm's output. float[B,T,D] -> float32[B,T,D]."""
        return ops.cast(self.final_norm(h), "float32")

    def token_logits(self, normalised):
        """float32[B,T,D] after the final norm -> float32[B,T,V]."""
        return ops.matmul(normalised, ops.transpose(self.output_embedding))

    def features(self, tokens, masked=None):
        """Mean over positions of each layer's normalised input.

        Args:
            tokens: int32[B,T].
            masked: bool[B,T] or None.

        Returns:
            float32[B,L+1,D]. Index l < L is the post-norm input of block l, index L the final norm.

        Source: paper, section 2.4: the shifted sequence with sos, as in pretraining.
        """
        norms = [block.attention_norm for block in self.blocks] + [self.final_norm]
        means = [
            ops.mean(ops.cast(norm(h), "float32"), axis=1)
            for norm, h in zip(norms, self.hidden_states(tokens, masked), strict=True)
        ]
        return ops.stack(means, axis=1)

    def get_config(self) -> dict:
        """The constructor's arguments; `ImageGPT(**model.get_config())` has the same shapes."""
        return {
            "image_size": list(self.image_size),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "causal": self.causal,
        }


def _check_sizes(*sizes):
    height, width, vocabulary_size, num_layers, hidden_dim, num_heads = sizes
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise InputError(
            "the model's sizes must be positive integers. Received: "
            f"image_size={(height, width)}, vocabulary_size={vocabulary_size}, "
            f"num_layers={num_layers}, hidden_dim={hidden_dim}, num_heads={num_heads}"
        )
    if hidden_dim % num_heads:
        raise InputError(
            "num_heads must divide hidden_dim. "
            f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}"
        )


@gin.register
def build_model(
    *,
    image_size: tuple[int, int],
    causal: bool,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    vocabulary_size: int,
    remat: bool = False,
) -> ImageGPT:
    """An `ImageGPT`; sizes from gin, `image_size` from the data and `causal` from the objective."""
    return ImageGPT(
        image_size=image_size,
        vocabulary_size=vocabulary_size,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        causal=causal,
        remat=remat,
    )


def abstract_model(build: Callable[[], ImageGPT]) -> ImageGPT:
    """The model that `build()` returns with shapes but without storage, however large it is."""
    with keras.StatelessScope(initialize_variables=False):
        return build()


def count_parameters(build: Callable[[], ImageGPT]) -> int:
    """Number of weights of the model that `build()` returns, without allocating them."""
    return sum(math.prod(variable.shape) for variable in abstract_model(build).weights)
