"""A mixture: several sources, shown in fixed proportions."""

import copy
import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import tensorflow as tf

from igpt_tf.data.sources import Examples, Source, register, source_from_description
from igpt_tf.data.stateless_random import epoch_order
from igpt_tf.errors import InputError

_MOST_SHARES = 10**6  # positions times shares must stay below 2**63


class MixedExamples:
    """Components one after the other, and which of them stands at each position of a run.

    Positions are dealt out like the dots of a digital line: of the first p positions, component 0
    with c_0 of C shares has exactly floor(p c_0 / C); what remains is numbered anew, 0, 1, 2, ...,
    and dealt to the others in the same way. So

    * a position's component and its place among that component's own positions are arithmetic:
      nothing is drawn and no history is needed, and two shards or a resumed run agree;
    * every stretch of positions, thus every batch, has each component's share to within the number
      of components, which independent draws would not give;
    * own places are 0, 1, 2, ... without gaps, so a component goes through epochs of its own, each
      a permutation: no image comes again before all of its component came.

    The regular pattern of components shows the network nothing: which image it is, is as random
    as ever.

    Args:
        parts: Examples of equal image_size; all with labels, or labels are left out.
        shares: Positive integers, one a part.
        labelled: Whether the labels of the parts mean the same classes.

    Attributes:
        parts, shares: As given, without common divisors.
        labels: int32[N] or None.
        image_size: (H, W).
    """

    def __init__(self, parts: Sequence[Examples], shares: Sequence[int], labelled: bool):
        divisor = math.gcd(*shares)
        self.parts = tuple(parts)
        self.shares = tuple(share // divisor for share in shares)
        self.labels = np.concatenate([part.labels for part in parts]) if labelled else None
        self.image_size = parts[0].image_size
        self._starts = np.cumsum([0, *map(len, parts)])  # of each part's indices

    def __len__(self) -> int:
        return int(self._starts[-1])

    def order(self, positions: tf.Tensor, seed: int, shuffle: bool) -> tf.Tensor:
        """int64[b]: which image stands at each of `positions` int64[b]."""
        parts, places = deal(positions, self.shares)
        indices = tf.zeros_like(positions)
        for number, part in enumerate(self.parts):
            own = epoch_order(places, len(part), seed, shuffle, stream=number)
            indices = tf.where(parts == number, own + self._starts[number], indices)
        return indices

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """uint8[B,H,W,3] of `indices` int64[B]; `seeds` int32[B,2] are for the parts' crops."""
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
        indices = np.asarray(indices)
        numbers = np.searchsorted(self._starts[1:], indices, side="right")
        kept = [number for number in range(len(self.parts)) if (numbers == number).any()]
        parts = [self.parts[k].take(indices[numbers == k] - self._starts[k]) for k in kept]
        return MixedExamples(parts, [self.shares[k] for k in kept], self.labels is not None)

    def centred(self) -> "MixedExamples":
        """The same mixture, every part with the centre crop."""
        centred = copy.copy(self)
        centred.parts = tuple(part.centred() for part in self.parts)
        return centred

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(images uint8[N,H,W,3], labels int32[N] or None)."""
        return np.concatenate([part.arrays()[0] for part in self.parts]), self.labels

    def check(self) -> None:
        """Checks every part. Raises: InputError."""
        for part in self.parts:
            part.check()

    def fingerprint(self) -> str:
        """Hex digest of the parts' fingerprints and shares. Raises: InputError."""
        parts = [part.fingerprint() for part in self.parts]
        return hashlib.sha256(f"mixture {parts} {self.shares}".encode()).hexdigest()


def deal(positions: tf.Tensor, shares: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Deals positions to components in proportion to `shares`.

    Args:
        positions: int64[b].
        shares: c_0, c_1, ...: positive integers.

    Returns:
        (component int64[b], place int64[b] among the positions of that component, from 0).
    """
    total, rest = sum(shares), positions
    components, places = tf.zeros_like(positions) - 1, tf.zeros_like(positions)
    for number, share in enumerate(shares):
        before = rest * share // total
        is_free = components < 0
        is_mine = is_free & ((rest + 1) * share // total > before)
        components = tf.where(is_mine, np.int64(number), components)
        places = tf.where(is_mine, before, places)
        rest, total = rest - before, total - share
    return components, places


@register
def mixture(*, sources: Sequence[Source | dict], weights: Sequence[float] | None = None) -> Source:
    """Several data sets in one training part, each with its share of every batch.

    The held-out and test parts are the first source's alone, so that losses compare with runs on
    it; those of the others are not used. Labels are kept only where all sources have labels of
    the same class names. A random crop is each source's own affair; `train.augmentation` is
    applied to all.

    Args:
        sources: Built by gin (`[@image_folder(), @web/tfrecords()]`), or descriptions.
        weights: Their shares of the images shown, in any unit; None is in proportion to their
            sizes, so that every image comes equally often.

    Raises:
        InputError: Sizes differ, a source is a mixture itself, or the weights are not positive
            numbers of few digits, one a source.

    Source: paper, section 3.1 (iGPT-XL: ImageNet and 100 M web images; the shares are not told).
    """
    sources = [_built(source) for source in sources]
    sizes = {source.image_size for source in sources}
    if len(sizes) != 1:
        raise InputError(
            "a mixture takes one source or more, all of one image_size. "
            f"Received: image_sizes={sorted(sizes)}"
        )
    first = sources[0]
    labelled = first.class_names is not None and all(
        source.class_names == first.class_names for source in sources
    )
    parts = [source.train for source in sources]
    if any(isinstance(part, MixedExamples) for part in parts):
        raise InputError("a mixture within a mixture; list all sources in one mixture.sources")
    shares = list(map(len, parts)) if weights is None else _shares(weights, len(parts))
    heldout = [part if labelled else _unlabelled(part) for part in (first.valid, first.test)]
    train = MixedExamples(parts, shares, labelled)
    return Source(train, *heldout, first.class_names if labelled else None)


def _built(source: Source | dict) -> Source:
    return source if isinstance(source, Source) else source_from_description(source)


def _shares(weights: Sequence[float], count: int) -> list[int]:
    """Integers in the proportion of `weights`, exactly. Raises: InputError."""
    are_numbers = all(
        isinstance(weight, int | float) and 0 < weight < math.inf for weight in weights
    )
    if len(weights) == count and are_numbers:
        fractions = [Fraction(str(weight)) for weight in weights]  # 0.3 is 3/10
        common = math.lcm(*(fraction.denominator for fraction in fractions))
        shares = [int(fraction * common) for fraction in fractions]
        if sum(shares) // math.gcd(*shares) <= _MOST_SHARES:
            return shares
    raise InputError(
        "mixture.weights are positive numbers, one a source, such as [0.3, 0.7], of few digits. "
        f"Received: weights={list(weights)}, sources={count}"
    )


def _unlabelled(examples: Examples | None) -> Examples | None:
    examples = copy.copy(examples)
    if examples is not None:
        examples.labels = None
    return examples
