"""How well a classifier in training does: confusion, accuracy, and keeping the best."""

import dataclasses
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
_NOT_DRAWN = ("tokens", "images", "labels", "weight")


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

    Source: paper, section 4.7 (5 masks, majority vote); there the masks are drawn anew for each
    image, here they are fixed, so that an answer depends on nothing but its image.
    """
    if number < 1:
        raise InputError(f"an ensemble has at least one mask. Received: num_masks={number}")
    length = image_size[0] * image_size[1]
    draws = objective.random_inputs(
        seed=_MASK_SEED, step=0, batch_size=number, sequence_length=length
    )
    return draws["masked"].numpy() if "masked" in draws else None


@dataclasses.dataclass(frozen=True)
class Scores:
    """How a classifier does on labelled images.

    Attributes:
        confusion: int64[C,C], rows the labels and columns the decisions.
        class_nats: Mean cross-entropy of the labels.
        nats_per_token: The generative loss, which fine-tuning moves.
    """

    confusion: np.ndarray
    class_nats: float
    nats_per_token: float

    @property
    def accuracy(self) -> float:
        """The share of right decisions."""
        return float(np.trace(self.confusion) / self.confusion.sum())


class Scorer:
    """Judges the classifier that a trainer trains, on labelled batches with weights.

    Args:
        trainer: Its model is a `Classifier`, its objective `Joint`.
        masks: bool[K,T] from `ensemble_masks`, or None.
    """

    def __init__(self, trainer: Trainer, masks: np.ndarray | None):
        self._trainer = trainer
        self._masks = masks
        self._step = self._summed(self._replica_scores)

    def score(self, batches: Iterable[dict]) -> Scores:
        """Compares decisions with labels, predicted tokens with the images'.

        Raises:
            InputError: The head has not been trained: its decisions would mean nothing.
        """
        if not np.any(keras.ops.convert_to_numpy(self._trainer.model.head)):
            raise InputError("the classification head is untrained, so it decides nothing")
        confusion, class_nats, nats = _total(self._step, batches)
        count = confusion.sum()
        return Scores(np.rint(confusion).astype("int64"), class_nats / count, nats / count)

    def _summed(self, replica: Callable[[dict], tuple]) -> Callable[[dict], tuple]:
        """`replica` on every replica, the results added up."""
        strategy = self._trainer.strategy

        @tf.function
        def step(batch):
            parts = strategy.run(replica, args=(batch,))
            return tuple(strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None) for x in parts)

        return step

    def _replica_scores(self, batch):
        """(confusion float32[C,C], nats of the labels float32[], generative loss float32[])."""
        parts = [self._part_scores(part) for part in self._trainer.branches(batch)]
        return tuple(tf.add_n(scores) for scores in zip(*parts, strict=True))

    def _part_scores(self, batch):
        labels, weight = batch["labels"], batch["weight"]
        num_classes = self._trainer.model.num_classes
        probabilities, decided, nats = self._decided(batch)
        confusion = tf.matmul(
            tf.one_hot(labels, num_classes) * weight[:, None],
            tf.one_hot(decided, num_classes),
            transpose_a=True,
        )
        label_nats = class_nats(tf.math.log(tf.maximum(probabilities, 1e-30)), labels)
        return confusion, tf.reduce_sum(label_nats * weight), tf.reduce_sum(nats * weight)

    def _decided(self, batch):
        """(probabilities float32[B,C], labels int32[B], generative loss float32[B])."""
        model, generative = self._trainer.model, self._trainer.objective.generative
        tokens = self._trainer.tokens(batch)
        if self._masks is None:  # one pass for all
            h, logits = model.hidden_and_classes(tokens)
            nats = generative.nats(model.network.token_logits(h), tokens)
            return *model.decide(logits[None]), nats
        draws = {key: batch[key] for key in batch if key not in _NOT_DRAWN}
        return *model.classify(tokens, self._masks), generative(model.network, tokens, **draws)


def _total(step: Callable[[dict], tuple], batches: Iterable[dict]) -> list[np.ndarray]:
    """The results float[...] of `step`, added up over the batches in float64."""
    totals = None
    for batch in batches:
        parts = [part.numpy().astype("float64") for part in step(batch)]
        totals = parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
    return totals


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
        scores = self._scorer.score(self._batches)
        accuracy = scores.accuracy
        self._summaries.scalars(
            step,
            "valid",
            accuracy=accuracy,
            class_nats=scores.class_nats,
            nats_per_token=scores.nats_per_token,
        )
        self._checkpoints.note_heldout(step, 1 - accuracy)
