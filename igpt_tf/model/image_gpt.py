"""Image GPT: a GPT over the palette tokens of an image, in raster order."""

from collections.abc import Callable

import gin
import keras
from keras import ops
from keras.src.backend.common import global_state

from igpt_tf.errors import InputError
from igpt_tf.model.block import Block, RMSNorm
from igpt_tf.model.gradients import read


@keras.saving.register_keras_serializable("igpt_tf")
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
        num_heads: Number of attention heads per block.
        causal: True for autoregressive models, False for masked ones.
        remat: Whether the backward pass computes each block again instead of keeping its
            activations: a quarter more time, a fraction of the memory, the same gradients.
        name: Name of the model. It is constant by default because checkpoints name the
            optimizer's slots after it.
        **kwargs: Keras' `dtype` and `trainable`.

    Attributes:
        block_runner: Function (block, h) -> h that runs a block instead of `block(h)`, or None.
            Set by a trainer that shares one traced function among the blocks.

    Raises:
        InputError: A size is not positive or `num_heads` does not divide `hidden_dim`.

    Example:
        >>> model = ImageGPT(
        ...     image_size=(4, 4), vocabulary_size=8, num_layers=2, hidden_dim=16, num_heads=2
        ... )
        >>> tokens = keras.random.randint((3, 16), 0, 8)
        >>> model(tokens).shape
        TensorShape([3, 16, 8])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)  # nats per token
        >>> model.compile("adam", loss)
        >>> history = model.fit(tokens, tokens, verbose=0)

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
        name: str = "image_gpt",
        **kwargs,
    ):
        # Without autocast, tokens that arrive as float32 keep all bits in mixed precision.
        super().__init__(name=name, autocast=False, **kwargs)
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
        policy = self.dtype_policy.name
        self.blocks = [
            Block(num_heads, num_layers, causal, name=f"block_{i}", dtype=policy)
            for i in range(num_layers)
        ]
        self.final_norm = RMSNorm(name="final_norm", dtype=policy)
        self.build((None, self.sequence_length))

    def build(self, input_shape):
        """Creates all variables; called once by the constructor."""
        if self.built:
            return
        dim = self.hidden_dim
        self.token_embedding = self._add_embedding(
            "token_embedding", (self.vocabulary_size, dim), 0.02
        )
        self.position_embedding = self._add_embedding(
            "position_embedding", (self.sequence_length, dim), 0.01
        )
        if self.causal:
            self.sos = self._add_embedding("sos", (dim,), 0.02)
        # Zero, so that the first loss is ln V exactly. Logits are float32 in mixed precision too.
        self.output_embedding = self._add_embedding(
            "output_embedding", (self.vocabulary_size, dim), 0.0, autocast=False
        )
        for layer in (*self.blocks, self.final_norm):
            layer.build((None, self.sequence_length, dim))
        self.built = True

    def _add_embedding(self, name, shape, stddev, **kwargs):
        initializer = keras.initializers.RandomNormal(stddev=stddev)
        return self.add_weight(name=name, shape=shape, initializer=initializer, **kwargs)

    def call(self, tokens, masked=None):
        """Predicts every token.

        Args:
            tokens: int32[B,T], or a dict of both arguments, as `fit` and `predict` pass them on.
                Other dtypes are cast to int32.
            masked: bool[B,T] or None: where the token embedding is replaced by zero.

        Returns:
            Logits float32[B,T,V]; slot i predicts token i.
        """
        if isinstance(tokens, dict):
            tokens, masked = tokens["tokens"], tokens.get("masked")
        return self.logits(self.hidden_states(tokens, masked)[-1])

    def embed(self, tokens, masked=None):
        """Returns h_0, float[B,T,D]; arguments as in `call`."""
        tokens = ops.cast(tokens, "int32")
        if self.causal:  # slot i sees token i - 1
            tokens = tokens[:, :-1]
            masked = None if masked is None else masked[:, :-1]
        # Read as a tensor, its gradient is dense: sparse ones cannot be summed over replicas that
        # have different numbers of images, as in the last batch of an epoch.
        h = ops.take(read(self.token_embedding), tokens, axis=0)
        if masked is not None:
            h = ops.where(ops.expand_dims(masked, -1), ops.zeros_like(h), h)
        if self.causal:
            sos = ops.broadcast_to(self.sos, (ops.shape(h)[0], 1, self.hidden_dim))
            h = ops.concatenate([ops.cast(sos, h.dtype), h], axis=1)
        return ops.cast(h + self.position_embedding, self.compute_dtype)

    def hidden_states(self, tokens, masked=None) -> list:
        """Returns h_0 .. h_L before any norm, L + 1 tensors float[B,T,D]."""
        states = [self.embed(tokens, masked)]
        for block in self.blocks:
            states.append(self._run_block(block, states[-1]))
        return states

    def _run_block(self, block, h):
        if self.block_runner is not None:
            return self.block_runner(block, h)
        # `keras.remat` keeps the gradients of all backends for positional arguments only.
        return keras.remat(lambda h: block(h))(h) if self.remat else block(h)

    def logits(self, h):
        """float[B,T,D] before the final norm -> float32[B,T,V], whatever the compute dtype."""
        return self.token_logits(self.normalise(h))

    def normalise(self, h):
        """Applies the final norm. float[B,T,D] -> float32[B,T,D]."""
        return ops.cast(self.final_norm(h), "float32")

    def token_logits(self, normalised):
        """float32[B,T,D] after the final norm -> float32[B,T,V]."""
        return ops.matmul(normalised, ops.transpose(self.output_embedding))

    def features(self, tokens, masked=None):
        """Returns the mean over positions of each layer's normalised input.

        Args:
            tokens: int32[B,T], or a `keras.Input` to use the features in a functional model.
            masked: bool[B,T] or None.

        Returns:
            float32[B,L+1,D]. Index l < L is the post-norm input of block l, index L the final norm.

        Example:
            >>> tokens = keras.Input((16,))
            >>> features = model.features(tokens)[:, 1]
            >>> outputs = keras.layers.Dense(10)(features)
            >>> classifier = keras.Model(tokens, outputs)

        Source: paper, section 2.4: the shifted sequence with sos, as in pretraining.
        """
        if keras.backend.is_keras_tensor(tokens):
            return Features(self)(tokens, masked=masked)
        norms = [block.attention_norm for block in self.blocks] + [self.final_norm]
        means = [
            ops.mean(ops.cast(norm(h), "float32"), axis=1)
            for norm, h in zip(norms, self.hidden_states(tokens, masked), strict=True)
        ]
        return ops.stack(means, axis=1)

    @property
    def architecture(self) -> dict:
        """Arguments of the constructor that determine the weights and what they compute."""
        return {
            "image_size": list(self.image_size),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "causal": self.causal,
        }

    def get_config(self) -> dict:
        """Returns all arguments of the constructor, as Keras saves them."""
        return {**super().get_config(), **self.architecture, "remat": self.remat}


@keras.saving.register_keras_serializable("igpt_tf")
class Features(keras.layers.Layer):
    """`ImageGPT.features` as a layer.

    Args:
        network: An `ImageGPT`.
    """

    def __init__(self, network: ImageGPT, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.network = network

    def build(self, input_shape=None):
        """The network has its variables already."""

    def call(self, tokens, masked=None):
        """See `ImageGPT.features`."""
        return self.network.features(tokens, masked)

    def compute_output_spec(self, tokens, masked=None):
        network = self.network
        shape = (tokens.shape[0], network.num_layers + 1, network.hidden_dim)
        return keras.KerasTensor(shape, "float32")

    def get_config(self):
        network = keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), "network": network}

    @classmethod
    def from_config(cls, config):
        return cls(
            **{**config, "network": keras.saving.deserialize_keras_object(config["network"])}
        )


def _check_sizes(*sizes):
    height, width, vocabulary_size, num_layers, hidden_dim, num_heads = sizes
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise InputError(
            "model sizes must be positive integers. Received: "
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
    """Builds an `ImageGPT`: sizes from gin, image_size from the data, causal from the objective."""
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
    """Returns the model that `build()` builds, with shapes but without storage for its weights."""
    name = "uninitialized_variables"
    others = global_state.get_global_attribute(name, [])[:]
    with keras.StatelessScope(initialize_variables=False):
        model = build()
    # Keras would allocate the weights when it leaves any later scope, for example that of a
    # symbolic call: 27 GB for iGPT-XL. There is no public name for its list of such variables.
    global_state.set_global_attribute(name, others)
    return model
