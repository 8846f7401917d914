"""Batches: each one a pure function of (seed, step), so that nothing has to be stored to resume.

The images of all epochs, one after the other, have positions 0, 1, 2, ...; step s takes the
positions s * B to (s + 1) * B. A position says which image it is (its epoch's permutation) and what
its random crop and augmentation are, in whatever shard it is computed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from igpt_tf.data.augmentation import Augmentation
from igpt_tf.data.mixture import MixedExamples
from igpt_tf.data.sources import Examples
from igpt_tf.data.stateless_random import epoch_order, fold
from igpt_tf.errors import InputError
from igpt_tf.palette import Palette

_PREFETCH = 4
_EVALUATION_SEED = 2020  # evaluations of masked models hide the same positions every time


def batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    num_steps: int | None = None,
    augmentation: Sequence[Augmentation] = (),
    table: np.ndarray | None = None,
    draws: Callable[[tf.Tensor], dict[str, tf.Tensor]] | None = None,
    shard: tuple[int, int] = (0, 1),
    shuffle: bool = True,
) -> tf.data.Dataset:
    """The training batches from `first_step` on.

    Args:
        examples: N images.
        batch_size: Global batch size B, over all shards.
        seed: With the step, all a batch depends on.
        first_step: The step of the first batch; a resumed run gives its own.
        num_steps: How many batches to yield; endless without.
        augmentation: Applied one after the other.
        table: int[2**24], `Palette.table`. With it tokens travel, without it images.
        draws: step int64[] -> {name: tensor[B, ...]} for the whole batch; the objective's draws.
        shard: (index, number of shards); this shard yields its B / number rows of each batch.
        shuffle: Every epoch in an order of its own; otherwise in the order stored.

    Returns:
        Dataset of {"images": uint8[b,H,W,3]} or {"tokens": int32[b,T]}, with "labels": int32[b] if
        there are any, and the draws; static shapes, b = B / number of shards.

    Raises:
        InputError: The batch does not divide among the shards.
    """
    rows = _shard_rows(batch_size, shard)
    seed = int(np.int64(seed) % 2**31)

    def batch(step):
        positions = step * batch_size + tf.range(rows.start, rows.stop, dtype=tf.int64)
        indices = _indices(examples, positions, seed, shuffle)
        seeds = tf.cast(
            tf.stack([tf.fill(positions.shape, np.int64(seed)), positions], 1), tf.int32
        )
        images = examples.load(indices, fold(seeds, 0))
        for number, augment in enumerate(augmentation, start=1):
            images = augment(images, fold(seeds, number))
        element = _element(examples, images, indices, table)
        for name, values in (draws(step) if draws else {}).items():
            element[name] = values[rows.start : rows.stop]
        return element

    last_step = np.iinfo(np.int64).max if num_steps is None else first_step + num_steps
    return _mapped(tf.data.Dataset.range(first_step, last_step), batch)


def evaluation_batches(
    examples: Examples, *, batch_size: int, table: np.ndarray | None = None
) -> tf.data.Dataset:
    """Every image once, in the order stored, with the centre crop; the last batch is filled up.

    Args:
        examples: N images.
        batch_size: B.
        table: See `batches`.

    Returns:
        Dataset of elements as in `batches`, with "weight": float32[B], 0 for what fills up.

    Source: paper, section 3.1 (ImageNet: the centre crop where a model is measured).
    """
    examples, size = examples.centred(), len(examples)

    def batch(step):
        positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        indices = tf.minimum(positions, size - 1)
        seeds = tf.cast(tf.stack([tf.zeros_like(indices), indices], axis=1), tf.int32)
        element = _element(examples, examples.load(indices, seeds), indices, table)
        element["weight"] = tf.cast(positions < size, tf.float32)
        return element

    return _mapped(tf.data.Dataset.range(-(-size // batch_size)), batch)


def iterate(dataset: Iterable, examples: Examples) -> Iterator:
    """Yields the elements of `dataset`, made from `examples`, and names an unreadable file.

    Raises:
        InputError: A file could not be read, in the place of TensorFlow's error.
    """
    try:
        yield from dataset
    except tf.errors.OpError:
        examples.check()  # TensorFlow does not say which file it was
        raise


def _shard_rows(batch_size: int, shard: tuple[int, int]) -> slice:
    index, num_shards = shard
    if batch_size < 1 or batch_size % num_shards:
        raise InputError(
            "the batch size is at least 1 and divides evenly among the shards. "
            f"Received: {batch_size=}, {num_shards=}"
        )
    size = batch_size // num_shards
    return slice(index * size, (index + 1) * size)


def _indices(examples, positions: tf.Tensor, seed: int, shuffle: bool) -> tf.Tensor:
    """int64[b]: which image stands at each position."""
    if isinstance(examples, MixedExamples):
        return examples.order(positions, seed, shuffle)
    return epoch_order(positions, len(examples), seed, shuffle)


def _element(examples, images, indices, table) -> dict[str, tf.Tensor]:
    element = {"images": images} if table is None else {"tokens": _tokens(images, table)}
    if examples.labels is not None:
        element["labels"] = tf.gather(examples.labels, indices)
    return element


def _tokens(images: tf.Tensor, table: np.ndarray) -> tf.Tensor:
    """int32[b,T] in raster order, by the table's rows b << 16 | g << 8 | r."""
    with tf.init_scope(), tf.device("CPU:0"):  # a constant of the graph would be copied with it
        table = tf.constant(table)
    red, green, blue = tf.unstack(tf.cast(images, tf.int32), axis=-1)
    tokens = tf.gather(table, (blue * 256 + green) * 256 + red)
    return tf.reshape(tf.cast(tokens, tf.int32), [images.shape[0], -1])


def _mapped(steps: tf.data.Dataset, batch) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # Shards are cut above, by rows; TensorFlow must not cut them again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # Nothing in it is for AutoGraph, which would raise an InputError as an error of its own.
    batch = tf.autograph.experimental.do_not_convert(batch)
    dataset = steps.map(batch, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(_PREFETCH).with_options(options)


class InputPipeline:
    """Batches for training and evaluation.

    Args:
        objective: Names the random inputs of a batch.
        palette: Encodes images on the host, if `quantize_on_device` is False.
        strategy: The strategy in force.
        batch_size: Global batch size in images.
        quantize_on_device: Whether images travel as uint8 and the step applies the palette.
    """

    def __init__(
        self,
        objective,
        palette: Palette,
        strategy: tf.distribute.Strategy,
        *,
        batch_size: int,
        quantize_on_device: bool,
    ):
        self._objective = objective
        self._table = None if quantize_on_device else palette.table
        self.strategy = strategy
        self.batch_size = batch_size

    def train_batches(
        self,
        examples: Examples,
        *,
        seed: int,
        first_step: int,
        augmentation: Sequence[Callable],
        steps_per_execution: int = 1,
    ) -> Iterator[dict]:
        """The batches of `first_step` and after, without end; a pure function of (seed, step).

        With `steps_per_execution` > 1 so many come at once, on a leading axis.
        """

        def shard_batches(shard):
            return batches(
                examples,
                batch_size=self.batch_size,
                seed=seed,
                first_step=first_step,
                augmentation=augmentation,
                table=self._table,
                draws=self._draws(examples, seed),
                shard=shard,
            )

        distributed = distribute(self.strategy, shard_batches, stack=steps_per_execution)
        return iterate(distributed, examples)

    def evaluation_batches(self, examples: Examples) -> Iterable[dict]:
        """Every image once, in order, with the same random inputs at every pass."""
        draws = self._draws(examples, _EVALUATION_SEED)

        def shard_batches(_):
            batches = evaluation_batches(examples, batch_size=self.batch_size, table=self._table)
            add_draws = tf.autograph.experimental.do_not_convert(
                lambda step, batch: {**batch, **draws(step)}
            )
            return batches.enumerate().map(add_draws)

        return _Pass(distribute(self.strategy, shard_batches), examples)

    def _draws(self, examples, seed):
        length = int(np.prod(examples.image_size))
        return lambda step: self._objective.random_inputs(
            seed=seed, step=step, batch_size=self.batch_size, sequence_length=length
        )


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Batches that can be gone through again and again; an unreadable file is named."""

    batches: Iterable[dict]
    examples: Examples

    def __iter__(self):
        return iterate(self.batches, self.examples)


def subset(examples: Examples, number: int | None) -> Examples:
    """A fixed random subset of at most `number` examples; all of them if None."""
    if number is None or number >= len(examples):
        return examples
    return examples.take(np.sort(np.random.default_rng(0).permutation(len(examples))[:number]))


def distribute(
    strategy: tf.distribute.Strategy,
    build: Callable[[tuple[int, int]], tf.data.Dataset],
    *,
    stack: int = 1,
):
    """Feeds each replica its share of every global batch.

    Args:
        strategy: The strategy in force.
        build: Takes (shard, num_shards) and returns that shard's batches, one shard a host.
        stack: How many batches come at once, on a leading axis; 1 adds no axis.

    Returns:
        An iterable of batches for `strategy.run`.

    Raises:
        InputError: The hosts' share of a batch does not divide over their replicas.
    """
    if isinstance(strategy, tf.distribute.Strategy) and strategy.num_replicas_in_sync == 1:
        return _stacked(build((0, 1)), stack)

    def host_batches(context):
        shard = (context.input_pipeline_id, context.num_input_pipelines)
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        return _split_batches(_stacked(build(shard), stack), replicas, axis=int(stack > 1))

    return strategy.distribute_datasets_from_function(host_batches)


def _stacked(dataset, number):
    return dataset if number == 1 else dataset.batch(number, drop_remainder=True)


def _split_batches(dataset, parts, axis):
    """Cuts each batch along its `axis` into `parts` consecutive ones."""
    return dataset.map(
        lambda batch: {
            name: tf.stack(tf.split(x, parts, axis=axis), axis=0) for name, x in batch.items()
        },
        deterministic=True,
    ).unbatch()
