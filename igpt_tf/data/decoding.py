"""Decoding inside a TensorFlow graph, for images that stay in their files.

No Python runs here: a Python function in a running pipeline blocks the interpreter's exit.
"""

import tensorflow as tf

from igpt_tf.data import orientation
from igpt_tf.data.images import DRAFT

# The paper's ImageNet recipe: a 224 pixel crop after the shorter side became 256 to 384 pixels.
_CROP = 224
_SHORTER_SIDE = (256, 384)


def centre_draws(batch_size: int | tf.Tensor) -> tf.Tensor:
    """float64[B,3] for `decode_batch`: the largest centred box."""
    return tf.tile(tf.constant([[1.0, 0.5, 0.5]], tf.float64), [batch_size, 1])


def random_draws(uniform: tf.Tensor) -> tf.Tensor:
    """Boxes by the paper's recipe.

    Args:
        uniform: float64[B,3] in [0, 1).

    Returns:
        float64[B,3]: the crop's share of the shorter side, 224 / U{256..384}, and its place from
        0 (top, left) to 1.

    Source: paper, section 3.1 (shorter side random in [256, 384], random 224 crop).
    """
    low, high = _SHORTER_SIDE
    sides = low + tf.floor(uniform[:, :1] * (high - low + 1))
    return tf.concat([_CROP / sides, uniform[:, 1:]], axis=1)


def decode_batch(paths: tf.Tensor, draws: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """uint8[B,H,W,3] from PNG or JPEG files, photographs turned upright.

    The box is cut before the one resize, which is the recipe's resize, crop and resize at once.

    Args:
        paths: string[B].
        draws: float64[B,3], see `random_draws`.
        image_size: (H, W).
    """

    def decode(path_and_draw):
        path, draw = path_and_draw
        image = _decode(tf.io.read_file(path), image_size)
        box = _box(tf.shape(image)[:2], draw, image_size)
        image = tf.image.crop_to_bounding_box(image, *tf.unstack(box))
        return tf.cast(tf.round(tf.image.resize(image, image_size, method="area")), tf.uint8)

    spec = tf.TensorSpec([*image_size, 3], tf.uint8)
    return tf.map_fn(decode, (paths, draws), fn_output_signature=spec)


def _decode(content: tf.Tensor, image_size) -> tf.Tensor:
    def jpeg():
        return orientation.upright(_decode_jpeg(content, DRAFT * max(image_size)), content)

    def png():
        return tf.io.decode_png(content, channels=3)

    image = tf.cond(tf.io.is_jpeg(content), jpeg, png)
    too_small = "smaller than image_size"
    tf.debugging.assert_greater_equal(tf.shape(image)[:2], image_size, message=too_small)
    return image


def _decode_jpeg(content: tf.Tensor, side: int) -> tf.Tensor:
    """The image at 1, 1/2, 1/4 or 1/8 of its size, at least `side` each way if it was."""
    spare = tf.reduce_min(tf.io.extract_jpeg_shape(content)[:2]) // side
    halvings = sum(tf.cast(spare >= ratio, tf.int32) for ratio in (2, 4, 8))

    def at(ratio):
        return lambda: tf.io.decode_jpeg(
            content, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )

    return tf.switch_case(halvings, [at(ratio) for ratio in (1, 2, 4, 8)])


def _box(size: tf.Tensor, draw: tf.Tensor, image_size) -> tf.Tensor:
    """int32 (top, left, height, width)."""
    size, wanted = tf.cast(size, tf.float64), tf.constant(image_size, tf.float64)
    sides = tf.maximum(tf.round(wanted * tf.reduce_min(size / wanted) * draw[0]), 1)
    corner = tf.round((size - sides) * draw[1:])
    return tf.cast(tf.concat([corner, sides], axis=0), tf.int32)
