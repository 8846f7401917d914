"""Scores of a classifier in training: confusion matrix, accuracy and losses."""

import dataclasses
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.objectives import Objective, class_nats
from igpt_tf.training.trainer import Trainer

_MASK_SEED = 2020


def ensemble_masks(
    objective: Objective, num_masks: int, image_size: tuple[int, int]
) -> np.ndarray | None:
    """Masks of a classifier's predictions, the same for every image and at every call.

    Args:
        objective: The pretraining objective.
        num_masks: Number of masks K; a majority needs an odd one, the paper takes 5.
        image_size: (H, W).

    Returns:
        bool[K,T], or None for an objective without masks.

    Raises:
        InputError: `num_masks` is not positive.

    Source: paper, section 4.7 (5 masks, majority vote). There, masks are sampled for each image;
    here they are fixed, so that a prediction depends on its image only.
    """
    if num_masks < 1:
        raise InputError(f"an ensemble needs at least one mask. Received: {num_masks=}")
    random_inputs = objective.random_inputs(
        seed=_MASK_SEED,
        step=0,
        batch_size=num_masks,
        sequence_length=image_size[0] * image_size[1],
    )
    return random_inputs["masked"].numpy() if "masked" in random_inputs else None


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a classifier on labelled images.

    Attributes:
        confusion: Number of images per label (row) and predicted class (column), int64[C,C].
        class_nats: Mean cross-entropy of the labels.
        nats_per_token: Generative loss, which fine-tuning changes.
    """

    confusion: np.ndarray
    class_nats: float
    nats_per_token: float

    @property
    def accuracy(self) -> float:
        """Fraction of right predictions."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name."""
        return {
            "accuracy": self.accuracy,
            "class_nats": self.class_nats,
            "nats_per_token": self.nats_per_token,
        }


class Scorer:
    """Scores the classifier that a trainer trains, on labelled batches with weights.

    Args:
        trainer: Trainer of a `Classifier` with the objective `Joint`.
        masks: bool[K,T] from `ensemble_masks`, or None.
    """

    def __init__(self, trainer: Trainer, masks: np.ndarray | None):
        self.trainer = trainer
        self._masks = masks

    def score(self, batches: Iterable[dict]) -> Scores:
        """Compares predictions with labels, and predicted tokens with the images'.

        Raises:
            InputError: The head has not been trained, so its predictions are meaningless.
        """
        if not np.any(keras.ops.convert_to_numpy(self.trainer.model.head)):
            raise InputError("the classification head is untrained; train for at least one step")
        sums = [0.0, 0.0, 0.0]
        for batch in batches:
            batch_sums = (x.numpy().astype("float64") for x in self._step(batch))
            sums = [total + x for total, x in zip(sums, batch_sums, strict=True)]
        confusion, label_nats, token_nats = sums
        count = confusion.sum()
        return Scores(np.rint(confusion).astype("int64"), label_nats / count, token_nats / count)

    @tf.function(autograph=False)
    def _step(self, batch):
        strategy = self.trainer.strategy
        scores = strategy.run(self._replica_scores, args=(batch,))
        return tuple(strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None) for x in scores)

    def _replica_scores(self, batch):
        """Sums: confusion float32[C,C], nats of the labels float32[], generative loss float32[]."""
        branches = self.trainer.compilation.branches(batch)
        scores = [self._branch_scores(branch) for branch in branches]
        return tuple(tf.add_n(x) for x in zip(*scores, strict=True))

    def _branch_scores(self, batch):
        labels, weight = batch["labels"], batch["weight"]
        num_classes = self.trainer.model.num_classes
        probabilities, predicted, nats = self._predict(batch)
        confusion = tf.matmul(
            tf.one_hot(labels, num_classes) * weight[:, None],
            tf.one_hot(predicted, num_classes),
            transpose_a=True,
        )
        label_nats = class_nats(tf.math.log(tf.maximum(probabilities, 1e-30)), labels)
        return confusion, tf.reduce_sum(label_nats * weight), tf.reduce_sum(nats * weight)

    def _predict(self, batch):
        """(probabilities float32[B,C], predicted int32[B], generative loss float32[B])."""
        model, generative = self.trainer.model, self.trainer.objective.generative
        tokens = self.trainer.tokens(batch)
        if self._masks is None:  # one forward pass for both
            h, logits = model.hidden_and_class_logits(tokens)
            nats = generative.nats(model.network.token_logits(h), tokens)
            return *model.vote(logits[None]), nats
        names = generative.random_inputs(
            seed=0, step=0, batch_size=1, sequence_length=model.network.sequence_length
        )
        random_inputs = {name: batch[name] for name in names}
        probabilities, predicted = model.classify(tokens, self._masks)
        return probabilities, predicted, generative(model.network, tokens, **random_inputs)
