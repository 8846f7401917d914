"""The cache of keys and values: how it gets room and how one position is written in place."""

import math

import tensorflow as tf
from keras import ops


class CoreCache:
    """With core operations only, for any TensorFlow runtime.

    `InplaceUpdate` writes into its argument's buffer. That is sound here: the buffer comes from
    `Empty`, which is never folded into a constant, every reader of position t takes the written
    tensor, and the next write needs the token that those readers lead to.
    """

    most_segments = 8

    @staticmethod
    def room(shape, dtype):
        """Zeros of that shape, in a buffer of their own."""
        return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=True)

    @staticmethod
    def update(cache, new, position):
        """Writes `new` float[B,heads,1,head_dim] at `position` of float[B,heads,S,head_dim]."""
        shape = tf.shape(cache)
        rows = tf.range(shape[0] * shape[1]) * shape[2] + position
        flat, new = (tf.reshape(x, [-1, x.shape[-1]]) for x in (cache, new))
        return tf.reshape(tf.raw_ops.InplaceUpdate(x=flat, i=rows, v=new), shape)


class XlaCache:
    """Inside a jit-compiled function: static shapes, XLA's dynamic-update-slice."""

    most_segments = 4  # each is compiled on its own

    @staticmethod
    def room(shape, dtype):
        """Zeros of that shape."""
        return tf.zeros(shape, dtype)

    @staticmethod
    def update(cache, new, position):
        """Writes `new` float[B,heads,1,head_dim] at `position` of float[B,heads,S,head_dim]."""
        return ops.slice_update(cache, (0, 0, position, 0), new)


def segment_length(image_size: tuple[int, int], most_segments: int) -> int:
    """Pixels in each of at most `most_segments` equal segments of whole rows."""
    height, width = image_size
    rows = next(r for r in range(1, height + 1) if height % r == 0 and height // r <= most_segments)
    return rows * width


def cache_bytes(config: dict, num_images: int, dtype: str = "float32") -> int:
    """Memory of the keys and values of `num_images` images once they are painted.

    Args:
        config: `ImageGPT.get_config()`, or the same from a SavedModel's metadata.
        num_images: B.
        dtype: Of the cache.
    """
    per_position = 2 * config["num_layers"] * config["hidden_dim"] * tf.as_dtype(dtype).size
    return num_images * math.prod(config["image_size"]) * per_position


def peak_bytes(config: dict, num_images: int, dtype: str = "float32") -> int:
    """Memory that painting takes at most, besides the weights; an estimate from above.

    While a segment is added, old and new caches are both there; and beginnings that differ are
    filled in with the attention's scores of a whole segment, in float32.
    """
    length = math.prod(config["image_size"])
    segment = segment_length(config["image_size"], CoreCache.most_segments)
    scores = 4 * num_images * config["num_heads"] * segment * length
    return 2 * cache_bytes(config, num_images, dtype) + 3 * scores
