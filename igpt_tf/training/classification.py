"""How well a classifier in training does: confusion, accuracy, and keeping the best."""

from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.objectives import class_nats
from igpt_tf.training.checkpoints import Checkpoints
from igpt_tf.training.summaries import Summaries
from igpt_tf.training.trainer import Trainer

_MASK_SEED = 2020


def ensemble_masks(objective, number: int, image_size: tuple[int, int]) -> np.ndarray | None:
    """The masks of a classifier's decisions, the same for every image and at every call.

    Args:
        objective: The pretraining objective.
        number: K; a majority needs an odd one, the paper takes 5.
        image_size: (H, W).

    Returns:
        bool[K,T], or None for an objective without masks.

    Raises:
        InputError: `number` is not positive.

    Source: paper, section 4.7; there the masks are drawn anew for each image.
    """
    if number < 1:
        raise InputError(f"an ensemble has at least one mask. Received: num_masks={number}")
    length = image_size[0] * image_size[1]
    draws = objective.draws(seed=_MASK_SEED, step=0, batch_size=number, sequence_length=length)
    return draws["masked"].numpy() if "masked" in draws else None


class Scorer:
    """Judges the classifier that a trainer trains, on labelled batches with weights.

    Args:
        trainer: Its model is a `Classifier`, its objective `Joint`.
        masks: bool[K,T] from `ensemble_masks`, or None.
    """

    def __init__(self, trainer: Trainer, masks: np.ndarray | None):
        self._trainer = trainer
        self._masks = masks
        self._classes = self._summed(self._replica_classes)
        self._nats = self._summed(self._replica_nats)

    def classes(self, batches: Iterable[dict]) -> tuple[np.ndarray, float]:
        """Compares decisions with labels.

        Returns:
            (confusion int64[C,C], rows the labels and columns the decisions; class_nats, the mean
            cross-entropy of the labels).

        Raises:
            InputError: The head has not been trained: its decisions would mean nothing.
        """
        if not np.any(keras.ops.convert_to_numpy(self._trainer.model.head)):
            raise InputError("the classification head is untrained, so it decides nothing")
        confusion, nats = _total(self._classes, batches)
        return np.rint(confusion).astype("int64"), float(nats / confusion.sum())

    def nats_per_token(self, batches: Iterable[dict]) -> float:
        """The generative loss, which fine-tuning moves."""
        nats, count = _total(self._nats, batches)
        return float(nats / count)

    def _summed(self, replica: Callable[[dict], tuple]) -> Callable[[dict], tuple]:
        """`replica` on every replica, the results added up."""
        strategy = self._trainer.strategy

        @tf.function
        def step(batch):
            parts = strategy.run(replica, args=(batch,))
            return tuple(strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None) for x in parts)

        return step

    def _replica_classes(self, batch):
        labels, weight = batch["labels"], batch["weight"]
        num_classes = self._trainer.model.num_classes
        probabilities, decided = self._trainer.model.classify(
            self._trainer.tokens(batch), self._masks
        )
        confusion = tf.matmul(
            tf.one_hot(labels, num_classes) * weight[:, None],
            tf.one_hot(decided, num_classes),
            transpose_a=True,
        )
        nats = class_nats(tf.math.log(tf.maximum(probabilities, 1e-30)), labels)
        return confusion, tf.reduce_sum(nats * weight)

    def _replica_nats(self, batch):
        weight = batch["weight"]
        unused = ("tokens", "images", "labels", "weight")
        draws = {key: batch[key] for key in batch if key not in unused}
        generative, network = self._trainer.objective.generative, self._trainer.model.network
        nats = generative(network, self._trainer.tokens(batch), **draws)
        return tf.reduce_sum(nats * weight), tf.reduce_sum(weight)


def _total(step: Callable[[dict], tuple], batches: Iterable[dict]) -> list[np.ndarray]:
    """The results float[...] of `step`, added up over the batches in float64."""
    totals = None
    for batch in batches:
        parts = [part.numpy().astype("float64") for part in step(batch)]
        totals = parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
    return totals


def accuracy(confusion: np.ndarray) -> float:
    """The share on the diagonal of int64[C,C]."""
    return float(np.trace(confusion) / confusion.sum())


class EvaluateClasses:
    """The held-out accuracy; the best step's weights are kept.

    Args:
        scorer: Judges the batches.
        batches: Held-out batches with labels and weights, the same at every call.
        checkpoints: Keeps the best.
        summaries: Where the numbers go.
    """

    def __init__(
        self,
        scorer: Scorer,
        batches: Iterable[dict],
        checkpoints: Checkpoints,
        summaries: Summaries,
    ):
        self._scorer = scorer
        self._batches = batches
        self._checkpoints = checkpoints
        self._summaries = summaries

    def __call__(self, step: int) -> None:
        confusion, nats = self._scorer.classes(self._batches)
        share = accuracy(confusion)
        self._summaries.scalars(step, "valid", accuracy=share, class_nats=nats)
        self._checkpoints.note_heldout(step, 1 - share)
