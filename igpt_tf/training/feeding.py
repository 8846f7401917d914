"""Feeds a trainer: the pipelines of a source, cut to the replicas of a strategy."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from igpt_tf.data import pipeline
from igpt_tf.data.sources import Examples
from igpt_tf.palette import Palette
from igpt_tf.training import strategies

_EVALUATION_SEED = 2020  # evaluations of masked models hide the same positions every time


class Feed:
    """Batches for training and evaluation.

    Args:
        objective: Names the random inputs of a batch.
        palette: Encodes images on the host, if `on_device` is False.
        strategy: The strategy in force.
        batch_size: Global batch size in images.
        on_device: Whether images travel as uint8 and the step applies the palette.
    """

    def __init__(
        self,
        objective,
        palette: Palette,
        strategy: tf.distribute.Strategy,
        *,
        batch_size: int,
        on_device: bool,
    ):
        self._objective = objective
        self._table = None if on_device else palette.table
        self.strategy = strategy
        self.batch_size = batch_size

    def training(
        self,
        examples: Examples,
        *,
        seed: int,
        first_step: int,
        augmentation: Sequence[Callable],
        stack: int = 1,
    ) -> Iterator[dict]:
        """The batches of `first_step` and after, without end; a pure function of (seed, step).

        With `stack` > 1 so many come at once, on a leading axis.
        """

        def shard_batches(shard):
            return pipeline.batches(
                examples,
                batch_size=self.batch_size,
                seed=seed,
                first_step=first_step,
                augmentation=augmentation,
                table=self._table,
                draws=self._draws(examples, seed),
                shard=shard,
            )

        batches = strategies.distribute(self.strategy, shard_batches, stack=stack)
        return pipeline.iterate(batches, examples)

    def evaluation(self, examples: Examples) -> Iterable[dict]:
        """Every image once, in order, with the same random inputs at every pass."""
        draws = self._draws(examples, _EVALUATION_SEED)

        def shard_batches(_):
            batches = pipeline.evaluation_batches(
                examples, batch_size=self.batch_size, table=self._table
            )
            return batches.enumerate().map(lambda step, batch: {**batch, **draws(step)})

        return _Pass(strategies.distribute(self.strategy, shard_batches), examples)

    def _draws(self, examples, seed):
        length = int(np.prod(examples.image_size))
        return lambda step: self._objective.draws(
            seed=seed, step=step, batch_size=self.batch_size, sequence_length=length
        )


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Batches that can be gone through again and again; an unreadable file is named."""

    batches: Iterable[dict]
    examples: Examples

    def __iter__(self):
        return pipeline.iterate(self.batches, self.examples)


def subset(examples: Examples, number: int | None) -> Examples:
    """A fixed random subset of at most `number` examples; all of them if None."""
    if number is None or number >= len(examples):
        return examples
    return examples.take(np.sort(np.random.default_rng(0).permutation(len(examples))[:number]))
