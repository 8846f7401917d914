"""One transformer block: pre-norm attention, then pre-norm MLP."""

import keras
from keras import ops

from igpt_tf.model.attention import SelfAttention
from igpt_tf.model.gradients import (
    normalised_matmul,
    normalised_mlp,
    quick_gelu,
    read,
    rms_normalise,
)

MLP_STDDEV = 0.02


class RMSNorm(keras.layers.Layer):
    """x * rsqrt(mean(x^2) + 1e-5) * g: no centring, no bias."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=input_shape[-1:], initializer="ones")

    def call(self, x):
        """float[...,D] -> float[...,D]."""
        return rms_normalise(x, read(self.scale))

    def matmul(self, x, kernel):
        """norm(x) @ kernel, for which the backward pass needs `x` only."""
        return normalised_matmul(x, read(self.scale), read(kernel))


class MLP(keras.layers.Layer):
    """D -> 4D -> D with quick GELU and without biases."""

    def build(self, input_shape):
        dim = input_shape[-1]
        normal = keras.initializers.RandomNormal
        self.input_kernel = self.add_weight(
            name="input_kernel", shape=(dim, 4 * dim), initializer=normal(stddev=MLP_STDDEV)
        )
        self.output_kernel = self.add_weight(
            name="output_kernel", shape=(4 * dim, dim), initializer=normal(stddev=MLP_STDDEV)
        )

    def call(self, x, norm=None, matmul=ops.matmul):
        """float[B,T,D] -> float[B,T,D]; `norm` is applied to `x` first, or `matmul` multiplies."""
        if norm:
            kernels = read(self.input_kernel), read(self.output_kernel)
            return normalised_mlp(x, read(norm.scale), *kernels)
        return matmul(quick_gelu(matmul(x, self.input_kernel)), self.output_kernel)


class Block(keras.layers.Layer):
    """h -> a = h + attention(norm(h)) -> a + mlp(norm(a)).

    Args:
        num_heads: Attention heads.
        num_layers: Depth L of the whole network, for the initial scale.
        causal: Whether attention sees the past only.

    Source: paper, section 2.3; openai/image-gpt `src/model.py`, `block`.
    """

    def __init__(self, num_heads: int, num_layers: int, causal: bool, **kwargs):
        super().__init__(**kwargs)
        self.attention_norm = RMSNorm(name="attention_norm")
        self.attention = SelfAttention(num_heads, num_layers, causal, name="attention")
        self.mlp_norm = RMSNorm(name="mlp_norm")
        self.mlp = MLP(name="mlp")

    def build(self, input_shape):
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            layer.build(input_shape)

    def call(self, h):
        """float[B,T,D] -> float[B,T,D]."""
        h = h + self.attention(h, norm=self.attention_norm)
        return h + self.mlp(h, norm=self.mlp_norm)
