"""An Image GPT that tells classes: a linear head on the mean of the final norm's output."""

import keras
from keras import ops

from igpt_tf.errors import InputError
from igpt_tf.model.image_gpt import ImageGPT


class Classifier(keras.Model):
    """logits = mean over positions of final_norm(h_L), times the head.

    Args:
        network: An `ImageGPT`, pretrained or not.
        num_classes: C, at least 2.
        generative: Whether the token predictions are trained too; without, the output embedding
            stays as it is.

    Raises:
        InputError: Fewer than two classes.

    Source: paper, sections 2.3 and 2.4; openai/image-gpt `src/model.py`, `clf/wclf`.
    """

    def __init__(self, network: ImageGPT, num_classes: int, *, generative: bool = True):
        super().__init__(name="classifier")
        if num_classes < 2:
            raise InputError(f"a classifier tells at least two classes. Received: {num_classes=}")
        self.network = network
        self.num_classes = num_classes
        self.image_size = network.image_size
        network.output_embedding.trainable = generative
        # Zero, so that the first loss is ln C exactly.
        self.head = self.add_weight(
            name="head",
            shape=(num_classes, network.hidden_dim),
            initializer="zeros",
            autocast=False,
        )
        self.built = True

    def call(self, tokens, masked=None):
        """Class logits. int32[B,T], bool[B,T] or None -> float32[B,C]."""
        return self.hidden_and_classes(tokens, masked)[1]

    def hidden_and_classes(self, tokens, masked=None):
        """(final norm's output float32[B,T,D], class logits float32[B,C])."""
        h = self.network.normalised(self.network.hidden_states(tokens, masked)[-1])
        return h, ops.matmul(ops.mean(h, axis=1), ops.transpose(self.head))

    def classify(self, tokens, masks=None):
        """Decides, for a masked network by the majority of an ensemble of masks.

        Args:
            tokens: int32[B,T].
            masks: bool[K,T], the same for every image, or None for an autoregressive network.

        Returns:
            (probabilities float32[B,C], the mean over the masks; labels int32[B], the class that
            most masks vote for, among equals the more probable).
        """
        if masks is None:
            return self.decide(self(tokens)[None])
        return self.decide(ops.stack([self(tokens, self._spread(m, tokens)) for m in masks]))

    def decide(self, logits):
        """`classify` from class logits float32[K,B,C], one of K passes each."""
        each = ops.softmax(logits)
        votes = ops.one_hot(ops.argmax(each, axis=-1), self.num_classes, dtype="float32")
        probabilities = ops.mean(each, axis=0)
        # Votes are whole numbers: half a probability decides between equals only.
        ranks = ops.sum(votes, axis=0) + 0.5 * probabilities
        return probabilities, ops.cast(ops.argmax(ranks, axis=-1), "int32")

    def _spread(self, mask, tokens):
        return ops.broadcast_to(ops.convert_to_tensor(mask, "bool"), ops.shape(tokens))
