"""An Image GPT that classifies: a linear head on the mean of one layer's normalised input."""

import keras
from keras import ops

from igpt_tf.errors import InputError
from igpt_tf.model.image_gpt import ImageGPT


def check_layer(layer: int | None, num_layers: int) -> None:
    """Raises: InputError, if a network of that many blocks has no such layer for a head."""
    if layer is not None and not 0 <= layer <= num_layers:
        raise InputError(
            f"the head must read one of the layers 0 to {num_layers}; {num_layers} is the final "
            f"norm. Received: {layer=}"
        )


def check_dropout(dropout: float) -> None:
    """Raises: InputError, if `dropout` is no probability below 1."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be 0 or more and below 1. Received: {dropout=}")


@keras.saving.register_keras_serializable("igpt_tf")
class Classifier(keras.Model):
    """logits = (mean over positions of norm_l(h_l)) @ head^T, by default of the final norm, l = L.

    Args:
        network: An `ImageGPT`, pretrained or not.
        num_classes: Number of classes C, at least 2.
        generative: Whether the token predictions are trained too. If not, the weights that only
            they depend on are frozen.
        layer: The layer l that the head reads, numbered as in `ImageGPT.features`: 0 to L. None for
            the final norm, L.
        dropout: Probability in training that a feature that the head reads is set to 0, in [0, 1).
        name: Name of the model.
        **kwargs: Keras' `dtype` and `trainable`.

    Raises:
        InputError: Fewer than two classes, there is no such layer, or `dropout` is out of range.

    Source: paper, sections 2.3, 2.4 and 4.4; openai/image-gpt `src/model.py`, `clf/wclf`.
    """

    def __init__(
        self,
        network: ImageGPT,
        num_classes: int,
        *,
        generative: bool = True,
        layer: int | None = None,
        dropout: float = 0.0,
        name: str = "classifier",
        **kwargs,
    ):
        super().__init__(name=name, autocast=False, **kwargs)
        if num_classes < 2:
            raise InputError(f"a classifier needs at least two classes. Received: {num_classes=}")
        check_layer(layer, network.num_layers)
        check_dropout(dropout)
        self.network = network
        self.num_classes = num_classes
        self.generative = generative
        self.layer = network.num_layers if layer is None else layer
        self.dropout = dropout
        self.image_size = network.image_size
        self._seeds = keras.random.SeedGenerator() if dropout else None  # for Keras' `fit`
        if not generative:
            self._freeze_what_only_tokens_need()
        self.build((None, network.sequence_length))

    def _freeze_what_only_tokens_need(self):
        network = self.network
        network.output_embedding.trainable = False
        if self.layer < network.num_layers:
            block, *later = network.blocks[self.layer :]
            for layer in (block.attention, block.mlp_norm, block.mlp, *later, network.final_norm):
                layer.trainable = False

    def build(self, input_shape):
        """Creates the head; called once by the constructor."""
        if self.built:
            return
        self.head = self.add_weight(
            name="head",
            shape=(self.num_classes, self.network.hidden_dim),
            initializer="zeros",  # so that the first loss is ln C exactly
            autocast=False,  # logits are float32 in mixed precision
        )
        self.built = True

    def call(self, tokens, masked=None, training=False):
        """Returns class logits. int32[B,T], bool[B,T] or None -> float32[B,C]."""
        noise = None
        if training and self.dropout:
            shape = (ops.shape(tokens)[0], self.network.hidden_dim)
            noise = keras.random.uniform(shape, seed=self._seeds)
        return self.hidden_and_class_logits(tokens, masked, noise)[1]

    def hidden_and_class_logits(self, tokens, masked=None, dropout_noise=None):
        """Returns (final norm's output float32[B,T,D], class logits float32[B,C]).

        Args:
            tokens: int32[B,T].
            masked: bool[B,T] or None.
            dropout_noise: float32[B,D], uniform in [0, 1), which decides the features that are set
                to 0; None for none. An argument and not drawn here, so that a step is a function
                of its inputs: a resumed run then takes the same steps.
        """
        network = self.network
        states = network.hidden_states(tokens, masked)
        final = read = network.normalise(states[-1])
        if self.layer < network.num_layers:
            norm = network.blocks[self.layer].attention_norm
            read = ops.cast(norm(states[self.layer]), "float32")
        features = ops.mean(read, axis=1)
        if dropout_noise is not None:
            kept = ops.cast(dropout_noise >= self.dropout, "float32")
            features = features * kept / (1 - self.dropout)
        return final, ops.matmul(features, ops.transpose(self.head))

    def classify(self, tokens, masks=None):
        """Predicts classes; for a masked network by the majority vote of an ensemble of masks.

        Args:
            tokens: int32[B,T].
            masks: bool[K,T], shared by all images, or None for an autoregressive network.

        Returns:
            (probabilities float32[B,C], the mean over the masks; labels int32[B], the class with
            the most votes, and among classes with equally many the most probable).
        """
        if masks is None:
            return self.vote(self(tokens)[None])
        shape = ops.shape(tokens)
        masks = [ops.broadcast_to(ops.convert_to_tensor(mask, "bool"), shape) for mask in masks]
        return self.vote(ops.stack([self(tokens, masked=mask) for mask in masks]))

    def vote(self, logits):
        """Returns the results of `classify` from class logits float32[K,B,C], one pass per mask."""
        each = ops.softmax(logits)
        votes = ops.one_hot(ops.argmax(each, axis=-1), self.num_classes, dtype="float32")
        probabilities = ops.mean(each, axis=0)
        # Votes are integers, so half a probability decides between equal numbers of votes only.
        ranks = ops.sum(votes, axis=0) + 0.5 * probabilities
        return probabilities, ops.cast(ops.argmax(ranks, axis=-1), "int32")

    def get_config(self) -> dict:
        """Returns all arguments of the constructor, as Keras saves them."""
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "num_classes": self.num_classes,
            "generative": self.generative,
            "layer": self.layer,
            "dropout": self.dropout,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects)
        return cls(**{**config, "network": network})
