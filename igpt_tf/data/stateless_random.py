"""Random numbers for batches of images: each row is a pure function of its image's seed.

TensorFlow's stateless operations take one seed for a whole tensor. Here every row has its own seed,
so that it is the same in any batch and any shard.
"""

import numpy as np
import tensorflow as tf

_SHUFFLE = 0x5A17  # keeps the permutations apart from other uses of the seed


def epoch_order(
    positions: tf.Tensor, size: int, seed: int, shuffle: bool = True, stream: int = 0
) -> tf.Tensor:
    """Returns the index of the image at each position of a sequence of epochs.

    Args:
        positions: int64[b], from 0.
        size: Number of images N; the positions e N to (e + 1) N - 1 are epoch e.
        seed: Random seed of the permutations, one per epoch.
        shuffle: Whether to permute; otherwise every epoch is in the stored order.
        stream: Index of one of several independent orders from the same seed.

    Returns:
        int64[b] in [0, N).
    """
    epochs, places = positions // size, positions % size
    if not shuffle:
        return places
    # The raw op: a batch may span two epochs, and `tf.random.experimental.index_shuffle` of
    # TensorFlow 2.21 fails on more than one seed.
    constants = [tf.fill(positions.shape, np.int64(value)) for value in (_SHUFFLE + stream, seed)]
    return tf.raw_ops.RandomIndexShuffle(
        index=places,
        seed=tf.stack([*constants, epochs], axis=1),
        max_index=tf.fill(positions.shape, np.int64(size - 1)),
    )


def row_bits(seeds: tf.Tensor, stream: int) -> tf.Tensor:
    """Returns uniform random bits.

    Args:
        seeds: int32[B,2].
        stream: Index of one of several independent numbers from the same seeds.

    Returns:
        int64[B] in [0, 2**31).

    Source: splitmix64 (Steele et al. 2014), its finaliser applied to each word of the seed.
    """
    words = tf.bitcast(tf.cast(seeds, tf.int64), tf.uint64)
    state = _mix(words[:, 0] + tf.constant(stream, tf.uint64) * _GOLDEN)
    state = _mix(tf.bitwise.bitwise_xor(state, words[:, 1]) + _GOLDEN)
    return tf.cast(_shift_right(state, 33), tf.int64)


def row_integers(seeds: tf.Tensor, stream: int, low: int, high: int) -> tf.Tensor:
    """int32[B] uniform in [low, high], both ends included."""
    return tf.cast(row_bits(seeds, stream) % (high - low + 1) + low, tf.int32)


def row_uniform(seeds: tf.Tensor, stream: int) -> tf.Tensor:
    """float64[B] uniform in [0, 1)."""
    return tf.cast(row_bits(seeds, stream), tf.float64) / 2.0**31


def fold_in(seeds: tf.Tensor, salt: int) -> tf.Tensor:
    """int32[B,2]: seeds for another use, independent of `seeds` and of those of other salts."""
    bits = [row_bits(seeds, 2 * salt), row_bits(seeds, 2 * salt + 1)]
    return tf.cast(tf.stack(bits, axis=1), tf.int32)


def _mix(state: tf.Tensor) -> tf.Tensor:
    state = tf.bitwise.bitwise_xor(state, _shift_right(state, 30)) * 0xBF58476D1CE4E5B9
    state = tf.bitwise.bitwise_xor(state, _shift_right(state, 27)) * 0x94D049BB133111EB
    return tf.bitwise.bitwise_xor(state, _shift_right(state, 31))


def _shift_right(state: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(state, tf.constant(bits, tf.uint64))


_GOLDEN = 0x9E3779B97F4A7C15
