"""One transformer block: pre-norm attention, then a pre-norm MLP."""

import keras

from igpt_tf.model.attention import SelfAttention
from igpt_tf.model.gradients import quick_gelu, read, rms_norm, rms_norm_matmul, rms_norm_mlp

MLP_STDDEV = 0.02


@keras.saving.register_keras_serializable("igpt_tf")
class RMSNorm(keras.layers.Layer):
    """x * rsqrt(mean(x^2) + 1e-5) * scale: no centring, no bias."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=input_shape[-1:], initializer="ones")

    def call(self, x):
        """float[...,D] -> float[...,D]."""
        return rms_norm(x, read(self.scale))

    def compute_output_shape(self, input_shape):
        return input_shape

    def matmul(self, x, kernel):
        """norm(x) @ kernel, which keeps `x` but not norm(x) for the backward pass."""
        return rms_norm_matmul(x, read(self.scale), read(kernel))


@keras.saving.register_keras_serializable("igpt_tf")
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

    def call(self, x, norm, matmul=None):
        """Returns mlp(norm(x)). float[B,T,D] -> float[B,T,D]; `matmul` as in `Block.call`."""
        if matmul is None:
            kernels = read(self.input_kernel), read(self.output_kernel)
            return rms_norm_mlp(x, read(norm.scale), *kernels)
        return matmul(quick_gelu(matmul(norm(x), self.input_kernel)), self.output_kernel)


@keras.saving.register_keras_serializable("igpt_tf")
class Block(keras.layers.Layer):
    """h -> a = h + attention(norm(h)) -> a + mlp(norm(a)).

    Args:
        num_heads: Number of attention heads.
        num_layers: Number of blocks L of the network, for the initial scale.
        causal: Whether position i attends to positions <= i only.

    Source: paper, section 2.3; openai/image-gpt `src/model.py`, `block`.
    """

    def __init__(self, num_heads: int, num_layers: int, causal: bool, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy.name
        self.attention_norm = RMSNorm(name="attention_norm", dtype=policy)
        self.attention = SelfAttention(
            num_heads, num_layers, causal, name="attention", dtype=policy
        )
        self.mlp_norm = RMSNorm(name="mlp_norm", dtype=policy)
        self.mlp = MLP(name="mlp", dtype=policy)

    def build(self, input_shape):
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            layer.build(input_shape)

    def call(self, h, cache=None, matmul=None):
        """Runs the block on all positions, or on new positions after those in `cache`.

        Args:
            h: float[B,T,D].
            cache: `KeyValueCache` with the keys and values of earlier positions, which is updated.
                None if `h` holds all positions.
            matmul: Function (x, kernel) -> x @ kernel that multiplies with the kernels in
                inference. None selects the products of the training step, whose hand-written
                gradients keep less memory.

        Returns:
            float[B,T,D].
        """
        h = h + self.attention(h, norm=self.attention_norm, cache=cache, matmul=matmul)
        return h + self.mlp(h, norm=self.mlp_norm, matmul=matmul)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        sizes = self.attention.get_config()
        names = ("num_heads", "num_layers", "causal")
        return {**super().get_config(), **{name: sizes[name] for name in names}}
