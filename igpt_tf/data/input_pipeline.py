"""The input pipeline: each batch is a pure function of (seed, step), so a resume needs no state.

The images of all epochs, one after the other, have positions 0, 1, 2, ...; step s takes the
positions s * B to (s + 1) * B. A position determines which image it is (by the permutation of its
epoch), its random crop and its augmentation, whatever shard computes it.

Order of the steps: `InputPipeline.train_batches` -> `batches` (indices, images, augmentation,
tokens, random inputs of one host) -> `distribute` (one part per replica) -> `iterate` (errors that
name a file).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from igpt_tf.data.augmentation import Augmentation
from igpt_tf.data.examples import Examples
from igpt_tf.data.stateless_random import fold_in
from igpt_tf.errors import InputError
from igpt_tf.objectives import Objective
from igpt_tf.palette import Palette

_PREFETCH = 4
_EVALUATION_SEED = 2020  # evaluations of masked models hide the same positions every time


class InputPipeline:
    """Batches for training and evaluation.

    Args:
        objective: Provides the random inputs of a batch.
        palette: Encodes the images on the host, unless `quantize_on_device`.
        strategy: The distribution strategy in force.
        batch_size: Global batch size in images.
        quantize_on_device: Whether batches hold uint8 images, which the step encodes.

    Example:
        pipeline = InputPipeline(objective, palette, strategy, batch_size=32,
                                 quantize_on_device=False)
        for batch in pipeline.train_batches(source.train, seed=0, first_step=0):
            trainer.train_step(batch)
    """

    def __init__(
        self,
        objective: Objective,
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
        augmentation: Sequence[Augmentation] = (),
        steps_per_execution: int = 1,
    ) -> Iterator[dict]:
        """Yields the batches of `first_step` and later steps, without end.

        With `steps_per_execution` > 1, each element holds so many batches, on a leading axis.

        Raises:
            InputError: The batch does not divide among the replicas, or a file cannot be read.
        """

        def shard_batches(shard):
            return batches(
                examples,
                batch_size=self.batch_size,
                seed=seed,
                first_step=first_step,
                augmentation=augmentation,
                table=self._table,
                random_inputs=self._random_inputs(examples, seed),
                shard=shard,
            )

        def indices(element):
            start = (first_step + element * steps_per_execution) * self.batch_size
            positions = tf.range(start, start + steps_per_execution * self.batch_size)
            positions = tf.cast(positions, tf.int64)
            return examples.order(positions, _pipeline_seed(seed), True).numpy()

        dataset = distribute(self.strategy, shard_batches, stack=steps_per_execution)
        return iterate(dataset, examples, indices)

    def evaluation_batches(self, examples: Examples) -> Iterable[dict]:
        """Every image once, in order, with the same random inputs at every pass.

        Returns:
            An iterable to be used any number of times; see `evaluation_batches`.
        """
        random_inputs = self._random_inputs(examples, _EVALUATION_SEED)

        def shard_batches(_):
            return evaluation_batches(
                examples,
                batch_size=self.batch_size,
                table=self._table,
                random_inputs=random_inputs,
            )

        def indices(element):
            start = element * self.batch_size
            return np.arange(start, min(start + self.batch_size, len(examples)))

        return _Batches(distribute(self.strategy, shard_batches), examples, indices)

    def _random_inputs(self, examples: Examples, seed: int):
        length = int(np.prod(examples.image_size))
        return lambda step: self._objective.random_inputs(
            seed=seed, step=step, batch_size=self.batch_size, sequence_length=length
        )


class _Batches:
    """Batches that can be iterated over again and again."""

    def __init__(self, dataset: Iterable[dict], examples: Examples, indices: Callable):
        self._arguments = dataset, examples, indices

    def __iter__(self) -> Iterator[dict]:
        return iterate(*self._arguments)


def batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    num_steps: int | None = None,
    augmentation: Sequence[Augmentation] = (),
    table: np.ndarray | None = None,
    random_inputs: Callable[[tf.Tensor], dict[str, tf.Tensor]] | None = None,
    shard: tuple[int, int] = (0, 1),
    shuffle: bool = True,
) -> tf.data.Dataset:
    """The training batches from `first_step` on.

    Args:
        examples: N images.
        batch_size: Global batch size B, over all shards.
        seed: Random seed of order, crops and augmentation.
        first_step: Step of the first batch.
        num_steps: Number of batches; None is without end.
        augmentation: Functions applied one after the other.
        table: int16[2**24], `Palette.table`. With it batches hold tokens, without it images.
        random_inputs: step int64[] -> {name: tensor[B, ...]} of the whole batch.
        shard: (index, number of shards); this shard yields its B / number rows of each batch.
        shuffle: Whether every epoch has an order of its own, or the order stored.

    Returns:
        Dataset of {"images": uint8[b,H,W,3]} or {"tokens": int32[b,T]}, with "labels": int32[b] if
        there are any, and the random inputs; static shapes, b = B / number of shards.

    Raises:
        InputError: The batch does not divide among the shards.
    """
    rows = _shard_rows(batch_size, shard)
    seed = _pipeline_seed(seed)

    def batch(step):
        positions = step * batch_size + tf.range(rows.start, rows.stop, dtype=tf.int64)
        indices = examples.order(positions, seed, shuffle)
        seeds = tf.cast(
            tf.stack([tf.fill(positions.shape, np.int64(seed)), positions], 1), tf.int32
        )
        images = examples.load(indices, fold_in(seeds, 0))
        for number, augment in enumerate(augmentation, start=1):
            images = augment(images, fold_in(seeds, number))
        element = _element(examples, images, indices, table)
        if random_inputs is not None:
            for name, values in random_inputs(step).items():
                element[name] = values[rows.start : rows.stop]
        return element

    last_step = np.iinfo(np.int64).max if num_steps is None else first_step + num_steps
    return _map_steps(tf.data.Dataset.range(first_step, last_step), batch)


def evaluation_batches(
    examples: Examples,
    *,
    batch_size: int,
    table: np.ndarray | None = None,
    random_inputs: Callable[[tf.Tensor], dict[str, tf.Tensor]] | None = None,
) -> tf.data.Dataset:
    """Every image once, in the order stored, with the centre crop; the last batch is filled up.

    Args:
        examples: N images.
        batch_size: B.
        table, random_inputs: See `batches`.

    Returns:
        Dataset of elements as in `batches`, with "weight": float32[B], 0 for the filled-up rows.

    Source: paper, section 3.1 (ImageNet: the centre crop for evaluation).
    """
    examples, size = examples.centre_cropped(), len(examples)

    def batch(step):
        positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        indices = tf.minimum(positions, size - 1)
        seeds = tf.cast(tf.stack([tf.zeros_like(indices), indices], axis=1), tf.int32)
        element = _element(examples, examples.load(indices, seeds), indices, table)
        element["weight"] = tf.cast(positions < size, tf.float32)
        if random_inputs is not None:
            element.update(random_inputs(step))
        return element

    return _map_steps(tf.data.Dataset.range(-(-size // batch_size)), batch)


def iterate(
    dataset: Iterable, examples: Examples, indices: Callable[[int], np.ndarray] | None = None
) -> Iterator:
    """Yields the elements of `dataset`, which loads `examples`; errors name the file.

    Args:
        dataset: Batches.
        examples: The examples in them.
        indices: Returns the indices of the examples in element 0, 1, 2, ...; only those are checked
            after an error, instead of all.

    Raises:
        InputError: A file cannot be read, instead of TensorFlow's error, which names none.
    """
    number = 0
    try:
        for element in dataset:
            yield element
            number += 1
    except tf.errors.OpError:
        if indices is not None:
            examples.check(np.unique(indices(number)))
        examples.check()
        raise


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
) -> Iterable[dict]:
    """Gives each replica its share of every global batch.

    Args:
        strategy: The strategy in force.
        build: Returns the batches of (shard, number of shards); one shard per host.
        stack: Number of batches per element, on a leading axis; 1 adds no axis.

    Returns:
        An iterable of elements for `strategy.run`.

    Raises:
        InputError: A host's share of a batch does not divide among its replicas.
    """
    if isinstance(strategy, tf.distribute.Strategy) and strategy.num_replicas_in_sync == 1:
        return _stack(build((0, 1)), stack)

    def host_batches(context):
        shard = (context.input_pipeline_id, context.num_input_pipelines)
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        return _split(_stack(build(shard), stack), replicas, axis=int(stack > 1))

    return strategy.distribute_datasets_from_function(host_batches)


def _stack(dataset: tf.data.Dataset, number: int) -> tf.data.Dataset:
    return dataset if number == 1 else dataset.batch(number, drop_remainder=True)


def _split(dataset: tf.data.Dataset, parts: int, axis: int) -> tf.data.Dataset:
    """Cuts each element along `axis` into `parts` consecutive ones."""

    def split(element):
        return {
            name: tf.stack(tf.split(x, parts, axis=axis), axis=0) for name, x in element.items()
        }

    split = tf.autograph.experimental.do_not_convert(split)
    return dataset.map(split, deterministic=True).unbatch()


def _pipeline_seed(seed: int) -> int:
    return int(np.int64(seed) % 2**31)


def _shard_rows(batch_size: int, shard: tuple[int, int]) -> slice:
    index, num_shards = shard
    if batch_size < 1 or batch_size % num_shards:
        raise InputError(
            "the batch size must be at least 1 and divide evenly among the shards. "
            f"Received: {batch_size=}, {num_shards=}"
        )
    size = batch_size // num_shards
    return slice(index * size, (index + 1) * size)


def _element(examples: Examples, images, indices, table) -> dict[str, tf.Tensor]:
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


def _map_steps(steps: tf.data.Dataset, batch: Callable) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # `batches` cuts the shards by rows; TensorFlow must not cut them again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # AutoGraph has nothing to convert here, and would wrap an InputError in an error of its own.
    batch = tf.autograph.experimental.do_not_convert(batch)
    dataset = steps.map(batch, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(_PREFETCH).with_options(options)
