"""The online probe: a cheap linear classifier beside pretraining, to see the features improve."""

import contextlib
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from absl import logging

from igpt_tf import runtime
from igpt_tf.data import Source
from igpt_tf.data.input_pipeline import subset
from igpt_tf.training.summaries import Summaries
from igpt_tf.training.trainer import Trainer

_STRENGTH = 0.01  # of the ridge, for standardised features
_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Tokens int32[N,T] and their classes int[N], counted from 0; -1 is not among `train`'s."""

    tokens: np.ndarray
    classes: np.ndarray


class OnlineProbe:
    """Accuracy of ridge regression on each layer: closed form, a fixed subset of the images.

    Quick rather than exact: the best layer is chosen by the accuracy that is reported.
    `tools.linear_probe` measures with care.

    Args:
        trainer: Holds the model. Nothing of it changes.
        train: To fit on.
        heldout: To measure on.
        summaries: Where the numbers go.
        weights: Lends the model the weights to probe, where they are not the trained ones.
    """

    def __init__(
        self,
        trainer: Trainer,
        train: Labelled,
        heldout: Labelled,
        summaries: Summaries,
        weights: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self._features = tf.function(trainer.model.features, reduce_retracing=True)
        self._train = train
        self._heldout = heldout
        self._summaries = summaries
        self._weights = weights

    def __call__(self, step: int) -> None:
        with self._weights():
            train, heldout = (self._layers(part.tokens) for part in (self._train, self._heldout))
        accuracies = [
            ridge_accuracy(fitted, self._train.classes, measured, self._heldout.classes)
            for fitted, measured in zip(train, heldout, strict=True)
        ]
        best = int(np.argmax(accuracies))
        self._summaries.scalars(step, "valid", probe_accuracy=accuracies[best], probe_layer=best)

    def _layers(self, tokens: np.ndarray) -> np.ndarray:
        """int32[N,T] -> float32[L+1,N,D]."""
        # The last batch is filled up: another shape would be traced, or compiled, once more.
        padded = np.pad(tokens, ((0, -len(tokens) % _BATCH_SIZE), (0, 0)))
        batches = np.split(padded, len(padded) // _BATCH_SIZE)
        with ThreadPoolExecutor(runtime.num_parallel_ops()) as threads:
            features = list(threads.map(self._batch_features, batches))
        return np.concatenate(features)[: len(tokens)].swapaxes(0, 1)

    def _batch_features(self, tokens: np.ndarray) -> np.ndarray:
        return self._features(tf.constant(tokens)).numpy()


def online_probe(
    trainer: Trainer,
    source: Source,
    num_images: int,
    summaries: Summaries,
    weights: Callable[[], contextlib.AbstractContextManager],
) -> OnlineProbe | None:
    """A probe of at most `num_images` training and as many held-out images of the data set.

    Returns:
        None, said once in the log, where there are no labels or all are the same.
    """
    parts = [subset(part, num_images) for part in (source.train, source.valid)]
    if any(part.labels is None for part in parts):
        logging.warning("no online probe: %s has no labels", source.name)
        return None
    names = np.unique(parts[0].labels)
    if len(names) < 2:
        logging.warning("no online probe: %s has one class only", source.name)
        return None
    labelled = (
        Labelled(trainer.palette.encode(part.arrays()[0]), _places(part.labels, names))
        for part in parts
    )
    return OnlineProbe(trainer, *labelled, summaries, weights)


def _places(labels: np.ndarray, names: np.ndarray) -> np.ndarray:
    """int[N]: where each label stands in the sorted `names`; -1 for a label that is not there."""
    places = np.minimum(np.searchsorted(names, labels), len(names) - 1)
    return np.where(names[places] == labels, places, -1)


def ridge_accuracy(
    train: np.ndarray, classes: np.ndarray, heldout: np.ndarray, wanted: np.ndarray
) -> float:
    """Held-out accuracy of ridge regression from standardised features to classes.

    Args:
        train: float[N,D], to fit on.
        classes: int[N], of `train`.
        heldout: float[M,D], to measure on.
        wanted: int[M], of `heldout`.
    """
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, heldout = ((part - mean) / deviation for part in (train, heldout))
    targets = np.eye(classes.max() + 1)[classes]
    ridge = _STRENGTH * len(train) * np.eye(train.shape[1])
    weights = np.linalg.solve(train.T @ train + ridge, train.T @ (targets - targets.mean(axis=0)))
    decided = np.argmax(heldout @ weights + targets.mean(axis=0), axis=1)
    return float(np.mean(decided == wanted))
