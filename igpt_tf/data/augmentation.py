"""Augmentation: stateless functions of the images and a seed for each of them.

A factory returns a function `(images uint8[B,H,W,3], seeds int32[B,2]) -> uint8[B,H,W,3]`.
"""

from collections.abc import Callable, Sequence

import gin
import tensorflow as tf

from igpt_tf.data.stateless_random import row_integers
from igpt_tf.errors import InputError

Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def check(augmentation: Sequence[Augmentation], image_size: tuple[int, int]) -> None:
    """Calls every function once, so that an error is reported before the run begins.

    Args:
        augmentation: The functions.
        image_size: (H, W) of the training images.

    Raises:
        InputError: A function rejects images of this size, or an element is not an augmentation.
    """
    if not isinstance(augmentation, list | tuple) or not all(map(callable, augmentation)):
        raise InputError(
            "augmentation must be a list of functions, as in [@shift(), @flip()], or []. "
            f"Received: augmentation={augmentation!r}"
        )
    for augment in augmentation:
        try:
            # Eagerly: the remains of a trace keep tensors until the garbage collector runs.
            with tf.device("CPU:0"):
                augment(tf.zeros([1, *image_size, 3], tf.uint8), tf.zeros([1, 2], tf.int32))
        except TypeError as error:
            raise InputError(
                "augmentation must be functions of images and seeds; in gin with parentheses: "
                f"[@shift()]. Received: {str(error).splitlines()[0]}"
            ) from None


@gin.register
def shift(max_pixels: int = 1) -> Augmentation:
    """Moves each image by up to `max_pixels` in each direction; the border is filled with zeros."""
    return _padded_crop(max_pixels, "CONSTANT")


@gin.register
def reflect_pad_crop(pixels: int | None = None) -> Augmentation:
    """Pads by reflection and crops a random window of the original size.

    Args:
        pixels: Width of the padding on each side; None for an eighth of the shorter side, which
            is the paper's 4 at 32 x 32.

    Source: paper, section 3.1 (CIFAR: reflect-padded by 4, a random 32 x 32 crop).
    """
    return _padded_crop(pixels, "REFLECT")


@gin.register
def flip() -> Augmentation:
    """Mirrors each image left to right with probability 1/2. Source: paper, section 3.1."""

    def augment(images, seeds):
        mirrored = row_integers(seeds, 0, 0, 1) == 1
        return tf.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

    return augment


def _padded_crop(pixels: int | None, mode: str) -> Augmentation:
    if pixels is not None and (not isinstance(pixels, int) or pixels < 0):
        raise InputError(
            f"an augmentation must move images by whole pixels, 0 or more. Received: {pixels=}"
        )

    def augment(images, seeds):
        height, width = images.shape[1:3]
        if pixels is None:
            return _padded_crop(min(height, width) // 8, mode)(images, seeds)
        if pixels >= min(height, width):
            raise InputError(
                "an augmentation must move images by fewer pixels than their shorter side. "
                f"Received: {pixels=}, image_size={(height, width)}"
            )
        padded = tf.pad(images, [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]], mode)
        tops = row_integers(seeds, 0, 0, 2 * pixels)
        lefts = row_integers(seeds, 1, 0, 2 * pixels)
        rows = tf.gather(padded, tops[:, None] + tf.range(height), batch_dims=1)
        return tf.gather(rows, lefts[:, None] + tf.range(width), axis=2, batch_dims=1)

    return augment
