"""Photographs stored sideways: how a JPEG file's EXIF says to turn it, on the host and in a graph.

The two ways read the same files alike, a damaged EXIF included: it turns nothing.

Source: EXIF 2.32, section 4.6.4 (the tag Orientation); TIFF 6.0, section 2 (the table of tags).
"""

import numpy as np
import tensorflow as tf

UPRIGHT = 1
_FIRST_SEGMENT = 2  # behind the marker that starts every JPEG file
_FILL, _SCAN = 0xFF, 0xDA
_EXIF_MARKER, _EXIF_NAME = b"\xff\xe1", b"Exif\0\0"
_HEAD = 10  # bytes: a segment's marker, its length, and the name
_ENTRY = 12  # bytes: a tag, its type, a count and the value
_TAG, _SHORT = 0x0112, 3
# What each orientation asks for, in this order.
TRANSPOSED = (5, 6, 7, 8)
_ROWS_REVERSED, _COLUMNS_REVERSED = (3, 4, 7, 8), (2, 3, 6, 7)


def read(content: bytes) -> int:
    """The orientation in a JPEG file, 1 to 8; 1, which is upright, where it tells none."""
    tiff = _exif(content)
    if tiff[:2] not in (b"II", b"MM"):
        return UPRIGHT

    def number(start, length):
        return int.from_bytes(tiff[start : start + length], "big" if tiff[0] == 77 else "little")

    table = number(4, 4) + 2
    stop = table + _ENTRY * number(table - 2, 2)
    for entry in range(table, stop if stop <= len(tiff) else table, _ENTRY):
        if number(entry, 2) == _TAG and number(entry + 2, 2) == _SHORT:
            value = number(entry + 8, 2)
            return value if value in range(1, 9) else UPRIGHT
    return UPRIGHT


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[h,w,C] as it is to be seen, a view of `pixels`."""
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in _ROWS_REVERSED:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in _COLUMNS_REVERSED else pixels


def upright(image: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    """uint8[h,w,3] as it is to be seen, of `image` as decoded from the JPEG file string[]."""
    # One look for the name spares most files the many small operations of the way to the tag.
    is_there = tf.size(tf.strings.split(content, _EXIF_NAME, maxsplit=1)) > 1
    return tf.cond(is_there, lambda: _upright(image, content), lambda: image)


def read_tensor(content: tf.Tensor) -> tf.Tensor:
    """int32[]: as `read`, of a JPEG file string[]."""
    tiff = _exif_tensor(content)
    size = tf.size(tiff)
    tiff = tf.pad(tiff, [[0, _ENTRY]])  # no slice below comes short
    is_big = tiff[0] == ord("M")

    def number(digits, length=2):
        return _number(tf.where(is_big, digits, tf.reverse(digits, [-1])), length)

    table = tf.cast(tf.minimum(number(tiff[4:8], 4), tf.cast(size, tf.int64)), tf.int32) + 2
    count = tf.cast(number(tiff[table - 2 : table]), tf.int32)
    is_tiff = (tiff[0] == tiff[1]) & (is_big | (tiff[0] == ord("I")))
    count = tf.where(is_tiff & (table + _ENTRY * count <= size), count, 0)
    entries = tf.reshape(tiff[table : table + _ENTRY * count], [-1, _ENTRY])
    is_found = (number(entries[:, :2]) == _TAG) & (number(entries[:, 2:4]) == _SHORT)
    values = tf.cast(tf.boolean_mask(number(entries[:, 8:10]), is_found), tf.int32)
    first = tf.concat([values, [UPRIGHT]], axis=0)[0]
    return tf.where((first >= 1) & (first <= 8), first, UPRIGHT)


def turn_tensor(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """[h,w,C] as it is to be seen, of `image` and int32[]."""

    def applied(image, orientations, change):
        applies = tf.reduce_any(orientation == tf.constant(orientations))
        return tf.cond(applies, lambda: change(image), lambda: image)

    image = applied(image, TRANSPOSED, lambda image: tf.transpose(image, [1, 0, 2]))
    image = applied(image, _ROWS_REVERSED, lambda image: image[::-1])
    return applied(image, _COLUMNS_REVERSED, lambda image: image[:, ::-1])


# Not inlined: TensorFlow steps over one call sooner than over all operations in it.
@tf.function(
    input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.string)],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def _upright(image: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    return turn_tensor(image, read_tensor(content))


def _exif(content: bytes) -> bytes:
    """What the first EXIF segment holds; nothing without one."""
    at = _FIRST_SEGMENT
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (b"", b"\xda"):
        stop = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at : at + 2] + content[at + 4 : at + _HEAD] == _EXIF_MARKER + _EXIF_NAME:
            return content[at + _HEAD : stop]
        at = at + 1 if content[at + 1] == _FILL else stop
    return b""


def _exif_tensor(content: tf.Tensor) -> tf.Tensor:
    """uint8[n]: as `_exif`."""
    data = tf.io.decode_raw(content, tf.uint8)
    size = tf.size(data)
    data = tf.pad(data, [[0, _HEAD]])
    exif = tf.constant(list(_EXIF_MARKER + _EXIF_NAME), tf.uint8)

    def is_exif(at):
        return tf.reduce_all(tf.concat([data[at : at + 2], data[at + 4 : at + _HEAD]], 0) == exif)

    def stop(at):
        length = tf.cast(_number(data[at + 2 : at + 4], 2), tf.int32)
        return tf.minimum(at + 2 + length, size)

    def goes_on(at):
        is_segment = (data[at] == _FILL) & (data[at + 1] != _SCAN)
        return (at + 1 < size) & is_segment & ~is_exif(at)

    def following(at):
        return [tf.where(data[at + 1] == _FILL, at + 1, stop(at))]

    [at] = tf.while_loop(goes_on, following, [tf.constant(_FIRST_SEGMENT)])
    found = (at + 1 < size) & is_exif(at)
    return data[at + _HEAD : tf.where(found, stop(at), 0)]


def _number(digits: tf.Tensor, length: int) -> tf.Tensor:
    """int64[...] of bytes uint8[...,length], the highest first."""
    values = [256**place for place in reversed(range(length))]
    return tf.reduce_sum(tf.cast(digits, tf.int64) * tf.constant(values, tf.int64), axis=-1)
