"""A mixture of several sources in fixed proportions."""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import tensorflow as tf

from igpt_tf.data.examples import Examples
from igpt_tf.data.sources import Source, register, source_from_description
from igpt_tf.data.stateless_random import epoch_order
from igpt_tf.errors import InputError

_MAX_SHARES = 10**6  # positions times shares must stay below 2**63


class MixedExamples:
    """Several examples one after the other; each has a fixed fraction of the positions of a run.

    Positions are assigned like the pixels of a digital line: of the first p positions, part 0
    with c_0 of C shares has exactly floor(p c_0 / C); the others are renumbered 0, 1, 2, ... and
    assigned to the other parts in the same way. Therefore:

    * the part of a position, and its number among the positions of that part, are arithmetic:
      they need no random numbers and no history, and all shards and resumed runs agree;
    * every interval of positions, and so every batch, has each part's share to within the number
      of parts, which independent random choices would not give;
    * the numbers within a part are 0, 1, 2, ... without gaps, so a part goes through epochs of its
      own, each a permutation: no image repeats before all images of its part were used.

    Args:
        parts: Examples of equal image_size; all with labels, or labels are left out.
        shares: Positive integers, one per part.
        labelled: Whether the labels of the parts mean the same classes.

    Attributes:
        parts, shares: As given, without common divisors.
        labels, image_size, is_fixed: See `Examples`.
    """

    def __init__(self, parts: Sequence[Examples], shares: Sequence[int], labelled: bool):
        divisor = math.gcd(*shares)
        self.parts = tuple(parts)
        self.shares = tuple(share // divisor for share in shares)
        self.labels = np.concatenate([part.labels for part in parts]) if labelled else None
        self.image_size = parts[0].image_size
        self._starts = np.cumsum([0, *map(len, parts)])  # of each part's indices

    @property
    def is_fixed(self) -> bool:
        return all(part.is_fixed for part in self.parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def order(self, positions: tf.Tensor, seed: int, shuffle: bool) -> tf.Tensor:
        parts, places = assign_positions(positions, self.shares)
        indices = tf.zeros_like(positions)
        for number, part in enumerate(self.parts):
            own = epoch_order(places, len(part), seed, shuffle, stream=number)
            indices = tf.where(parts == number, own + self._starts[number], indices)
        return indices

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        starts = tf.constant(self._starts[1:], tf.int64)
        numbers = tf.cast(tf.searchsorted(starts, indices, side="right"), tf.int32)
        rows = tf.dynamic_partition(tf.range(tf.size(indices)), numbers, len(self.parts))
        images = [
            part.load(tf.gather(indices, own) - start, tf.gather(seeds, own))
            for part, own, start in zip(self.parts, rows, self._starts[:-1], strict=True)
        ]
        together = tf.dynamic_stitch(rows, images)
        return tf.ensure_shape(together, [*indices.shape, *self.image_size, 3])

    def take(self, indices: np.ndarray) -> "MixedExamples":
        """The examples at `indices` int[M], part by part: the order inside each part is kept."""
        taken = [(number, rows) for number, rows in self._by_part(indices) if len(rows)]
        parts = [self.parts[number].take(rows) for number, rows in taken]
        shares = [self.shares[number] for number, _ in taken]
        return MixedExamples(parts, shares, self.labels is not None)

    def centre_cropped(self) -> "MixedExamples":
        return self._with_parts([part.centre_cropped() for part in self.parts])

    def without_labels(self) -> "MixedExamples":
        return MixedExamples(self.parts, self.shares, labelled=False)

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        return np.concatenate([part.arrays()[0] for part in self.parts]), self.labels

    def check(self, indices: np.ndarray | None = None) -> None:
        chosen = np.arange(len(self)) if indices is None else indices
        for number, rows in self._by_part(chosen):
            self.parts[number].check(rows)

    def fingerprint(self) -> str:
        parts = [part.fingerprint() for part in self.parts]
        return hashlib.sha256(f"mixture {parts} {self.shares}".encode()).hexdigest()

    def _by_part(self, indices: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(number of the part, indices int[M] within it) for each part."""
        indices = np.asarray(indices)
        numbers = np.searchsorted(self._starts[1:], indices, side="right")
        return [
            (number, indices[numbers == number] - start)
            for number, start in enumerate(self._starts[:-1])
        ]

    def _with_parts(self, parts: Sequence[Examples]) -> "MixedExamples":
        return MixedExamples(parts, self.shares, self.labels is not None)


def assign_positions(positions: tf.Tensor, shares: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Assigns positions to parts in proportion to `shares`.

    Args:
        positions: int64[b].
        shares: c_0, c_1, ...: positive integers.

    Returns:
        (part int64[b], number int64[b] among the positions of that part, from 0).
    """
    total, rest = sum(shares), positions
    parts, numbers = tf.zeros_like(positions) - 1, tf.zeros_like(positions)
    for part, share in enumerate(shares):
        before = rest * share // total
        is_free = parts < 0
        is_own = is_free & ((rest + 1) * share // total > before)
        parts = tf.where(is_own, np.int64(part), parts)
        numbers = tf.where(is_own, before, numbers)
        rest, total = rest - before, total - share
    return parts, numbers


@register
def mixture(*, sources: Sequence[Source | dict], weights: Sequence[float] | None = None) -> Source:
    """Several data sets in one training split, each with its share of every batch.

    The held-out and test splits are those of the first source, so that losses compare with runs on
    it; those of the others are not used. Labels are kept only if all sources have labels of the
    same class names. A random crop belongs to its source; `train.augmentation` applies to all.

    Args:
        sources: Built by gin (`[@image_folder(), @web/tfrecords()]`), or descriptions.
        weights: Their shares of the training images, in any unit; None is in proportion to their
            sizes, so that every image is used equally often.

    Raises:
        InputError: Sizes differ, a source is a mixture itself, or the weights are not positive
            numbers of few digits, one per source.

    Source: paper, section 3.1 (iGPT-XL: ImageNet and 100 M web images; the shares are not given).
    """
    sources = [
        source if isinstance(source, Source) else source_from_description(source)
        for source in sources
    ]
    sizes = {source.image_size for source in sources}
    if len(sizes) != 1:
        raise InputError(
            "a mixture needs at least one source, and all must have one image_size. "
            f"Received: image_sizes={sorted(sizes)}"
        )
    if any(source.name == "mixture" for source in sources):
        raise InputError(
            "a mixture contains a mixture; list all sources in one mixture.sources. "
            f"Received: sources={[source.name for source in sources]}"
        )
    first = sources[0]
    labelled = first.class_names is not None and all(
        source.class_names == first.class_names for source in sources
    )
    parts = [source.train for source in sources]
    shares = list(map(len, parts)) if weights is None else _shares(weights, len(parts))
    train = MixedExamples(parts, shares, labelled)
    if labelled:
        return Source(train, first.valid, first.test, first.class_names)
    test = first.test and first.test.without_labels()
    return Source(train, first.valid.without_labels(), test, None)


def _shares(weights: Sequence[float], count: int) -> list[int]:
    """Integers in the proportion of `weights`, exactly. Raises: InputError."""
    are_numbers = all(
        isinstance(weight, int | float) and 0 < weight < math.inf for weight in weights
    )
    if len(weights) == count and are_numbers:
        fractions = [Fraction(str(weight)) for weight in weights]  # 0.3 is 3/10
        common = math.lcm(*(fraction.denominator for fraction in fractions))
        shares = [int(fraction * common) for fraction in fractions]
        if sum(shares) // math.gcd(*shares) <= _MAX_SHARES:
            return shares
    raise InputError(
        "mixture.weights must be positive numbers of few digits, one per source, as [0.3, 0.7]. "
        f"Received: weights={list(weights)}, sources={count}"
    )
