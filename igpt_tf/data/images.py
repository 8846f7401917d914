"""One image: decode, cut the box wanted, shrink it by area."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from igpt_tf.data import orientation
from igpt_tf.errors import InputError

# A JPEG decodes at 1/2, 1/4 or 1/8 of its size for little. Four times the size wanted is asked
# for, so that the area resize has the last word: 42 dB or better to the whole photograph's.
DRAFT = 4

_CHUNK = 256  # images resized at once

# What PIL raises on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


def size_pair(image_size) -> tuple[int, int]:
    """(H, W) from an int or a pair. Raises: InputError."""
    is_pair = isinstance(image_size, list | tuple)
    pair = tuple(image_size) if is_pair else (image_size, image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise InputError(
            "image_size is a positive integer or a pair (height, width). "
            f"Received: image_size={image_size!r}"
        )
    return pair


def read(path: str) -> bytes:
    """The file's content. Raises: InputError."""
    with _reading(path), open(path, "rb") as file:
        return file.read()


def size_and_date(path: str) -> tuple[int, int]:
    """(bytes, nanoseconds since 1970 of the last change) of the file. Raises: InputError."""
    with _reading(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _reading(path: str):
    """Turns a missing or forbidden file into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"an image file cannot be read ({error.strerror}); restore it, or start again without "
            f"it. Received: path={path}"
        ) from None


def decode(content: bytes, path: str, image_size) -> np.ndarray:
    """Decodes a PNG or JPEG file to uint8[H,W,3], a photograph turned upright.

    Args:
        content: Of the file.
        path: The file, for the error.
        image_size: (H, W) wanted.

    Raises:
        InputError: The file is corrupt, or smaller than `image_size`.
    """
    try:
        return _decode(content, image_size)
    except InputError as error:
        problem = str(error)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        problem = f"an image file is corrupt ({reason}); repair or remove it"
    raise InputError(f"{problem}. Received: path={path}")


def _decode(content: bytes, image_size) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        # Cameras store photographs sideways and say so in EXIF; the sizes are those of the view.
        turn = orientation.UPRIGHT if image.format == "PNG" else orientation.read(content)
        size = (image.height, image.width)
        check_not_smaller(size[::-1] if turn in orientation.TRANSPOSED else size, image_size)
        side = DRAFT * max(image_size)  # of both, as the image may be turned
        image.draft("RGB", (side, side))
        return fit(orientation.turn(np.asarray(_rgb(image)), turn), image_size)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # a plain conversion would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))  # as TensorFlow does
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(pixels: np.ndarray, image_size) -> np.ndarray:
    """uint8[...,H,W,3]: the centre of uint8[...,h,w,3], each new pixel the mean over its area.

    Cutting the largest centred box of the right proportions and shrinking it is a resize of the
    shorter side and a centre crop, with one resampling and no rounding of the size in between.
    """
    height, width = pixels.shape[-3:-1]
    if (height, width) == tuple(image_size):
        return pixels
    scale = min(height / image_size[0], width / image_size[1])
    rows = _area_sums(pixels, -3, image_size[0], scale)
    sums = _area_sums(rows, -2, image_size[1], scale)
    return np.rint(sums / scale**2).astype("uint8")


def _area_sums(values: np.ndarray, axis: int, wanted: int, scale: float) -> np.ndarray:
    """float64, `wanted` long on `axis`: sums of centred stretches `scale` long, parts counted."""
    # Differences of the running sum at the stretches' ends. (Matrix products would be no faster,
    # and in threads far slower: each would start threads of its own.)
    size = values.shape[axis]
    edges = (size - wanted * scale) / 2 + scale * np.arange(wanted + 1)
    whole = np.clip(edges.astype(int), 0, size - 1)
    part = (edges - whole - 1).reshape(-1, *[1] * (-1 - axis))
    running = np.cumsum(values, axis=axis, dtype="float64")
    return np.diff(running.take(whole, axis) + part * values.take(whole, axis), axis=axis)


def fit_array(images: np.ndarray, image_size) -> np.ndarray:
    """Area resize and centre crop of uint8[N,h,w,3] (or [N,h,w], grey) to uint8[N,H,W,3].

    Raises:
        InputError: `image_size` is larger than the images.
    """
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    check_not_smaller(images.shape[1:3], image_size)
    if images.shape[1:3] == tuple(image_size):
        return np.ascontiguousarray(images)
    chunks = range(0, len(images), _CHUNK)
    return np.concatenate([fit(images[at : at + _CHUNK], image_size) for at in chunks])


def check_not_smaller(size, image_size) -> None:
    """Raises InputError where an image of (height, width) `size` would have to be enlarged."""
    if size[0] < image_size[0] or size[1] < image_size[1]:
        raise InputError(
            f"an image of {size[0]}x{size[1]} pixels is smaller than image_size "
            f"{image_size[0]}x{image_size[1]}; choose a smaller image_size or remove the image"
        )
