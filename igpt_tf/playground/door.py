"""Limits at the door: what the page sends, checked before a model sees it."""

import base64
import math
import threading
from dataclasses import dataclass

import numpy as np

from igpt_tf.errors import InputError
from igpt_tf.sampling.params import SamplingParams, check_num_given
from igpt_tf.serving import files

MOST_COMPLETIONS = 16
_PREFIX = "data:image/png;base64,"
_DECODING = threading.Lock()  # one large image at a time in memory


@dataclass(frozen=True)
class Wish:
    """What is to be painted.

    Attributes:
        image: uint8[1,H,W,3].
        num_given: How many raster pixels of it are kept.
        hidden: bool[1,H,W], what of these is painted anew all the same; None for nothing.
        completions: How many.
        params: How tokens are chosen.
    """

    image: np.ndarray
    num_given: int
    hidden: np.ndarray | None
    completions: int
    params: SamplingParams


def read_wish(content, image_size: tuple[int, int]) -> Wish:
    """From decoded JSON.

    Raises:
        InputError: Something is missing, of another kind, or out of range.
    """
    image = read_image(content, image_size)
    num_given = _whole(content, "num_given")
    check_num_given(num_given, image_size[0] * image_size[1])
    completions = _whole(content, "completions")
    if not 1 <= completions <= MOST_COMPLETIONS:
        raise InputError(
            f"completions must be 1 to {MOST_COMPLETIONS}. Received: completions={completions}"
        )
    params = SamplingParams(
        seed=_whole(content, "seed"),
        temperature=_real(content, "temperature"),
        top_k=_whole(content, "top_k"),
        top_p=_real(content, "top_p"),
    )
    return Wish(image, num_given, _hidden(content, image_size), completions, params)


def read_image(content, image_size: tuple[int, int]) -> np.ndarray:
    """uint8[1,H,W,3] of the data URL `image` in decoded JSON. Raises: InputError."""
    url = content.get("image") if isinstance(content, dict) else None
    if not isinstance(url, str) or not url.startswith(_PREFIX):
        raise InputError(f"the request must be JSON with an image, {_PREFIX}...")
    try:
        content = base64.b64decode(url[len(_PREFIX) :], validate=True)
    except ValueError as error:
        raise InputError(f"the image is not base64 ({error})") from None
    return read_file(content, image_size)


def read_file(content: bytes, image_size: tuple[int, int]) -> np.ndarray:
    """uint8[1,H,W,3]: a PNG or JPEG file, shrunk and cropped as for training.

    Raises:
        InputError: It is empty, too large, no image, a bomb, or smaller than the model's.
    """
    from igpt_tf.data.images import decode  # with all of TensorFlow behind it

    files.check(content, "upload")
    with _DECODING:
        return decode(content, "upload", image_size)[None]


def _hidden(content: dict, image_size: tuple[int, int]) -> np.ndarray | None:
    hidden = content.get("hidden")
    if hidden is None:
        return None
    num_pixels = image_size[0] * image_size[1]
    whole = isinstance(hidden, list) and len(hidden) == num_pixels
    if not whole or not all(value in (0, 1) for value in hidden):
        raise InputError(f"hidden must be {num_pixels} zeros and ones, one a pixel")
    return np.reshape(np.array(hidden, bool), (1, *image_size))


def _whole(content: dict, name: str) -> int:
    return _number(content, name, (int,), "a whole number")


def _number(content: dict, name: str, kinds=(int, float), wanted="a number"):
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, kinds):
        received = "nothing" if value is None else f"{name}={str(value)[:40]}"
        raise InputError(f"{name} must be {wanted}. Received: {received}")
    return value


def _real(content: dict, name: str) -> float:
    """As float32 holds it: what is too large becomes infinite, what is too small nothing."""
    value = _number(content, name)
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(math.inf if abs(value) > 1e300 else value))
