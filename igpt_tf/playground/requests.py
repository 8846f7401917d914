"""Validation of the page's requests, before a model sees them."""

import base64
import dataclasses

import msgspec
import numpy as np

from igpt_tf.errors import InputError
from igpt_tf.sampling.params import SamplingParams, check_num_given

MAX_COMPLETIONS = 16
_DATA_URL = "data:image/png;base64,"


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """Which pixels of an image to keep, and how to generate the others.

    Attributes:
        image: uint8[1,H,W,3].
        num_given: Number of raster pixels kept.
        hidden: bool[1,H,W], pixels that are generated although they are given; None for none.
        completions: Number of completions.
        params: Sampling parameters.
    """

    image: np.ndarray
    num_given: int
    hidden: np.ndarray | None
    completions: int
    params: SamplingParams


class _ImageFields(msgspec.Struct):
    image: str


class _CompletionFields(msgspec.Struct):
    image: str
    num_given: int
    completions: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    hidden: list[int] | None = None


def parse_completion(content, image_size: tuple[int, int]) -> CompletionRequest:
    """Parses the JSON of a completion request.

    Raises:
        InputError: A field is missing, of the wrong type or out of range.
    """
    fields = _convert(content, _CompletionFields)
    check_num_given(fields.num_given, image_size[0] * image_size[1])
    if not 1 <= fields.completions <= MAX_COMPLETIONS:
        raise InputError(
            f"completions must be 1 to {MAX_COMPLETIONS}. Received: completions="
            f"{fields.completions}"
        )
    params = SamplingParams(
        fields.seed, _as_float32(fields.temperature), fields.top_k, _as_float32(fields.top_p)
    )
    hidden = _parse_hidden(fields.hidden, image_size)
    image = _decode_data_url(fields.image, image_size)
    return CompletionRequest(image, fields.num_given, hidden, fields.completions, params)


def parse_image(content, image_size: tuple[int, int]) -> np.ndarray:
    """Returns the field `image` of a request's JSON as uint8[1,H,W,3]. Raises: InputError."""
    return _decode_data_url(_convert(content, _ImageFields).image, image_size)


def decode_upload(content: bytes, name: str, image_size: tuple[int, int]) -> np.ndarray:
    """Decodes an image file, resized and cropped as for training.

    Args:
        content: Content of the file.
        name: Name of the file, for errors.
        image_size: (H, W).

    Returns:
        uint8[1,H,W,3].

    Raises:
        InputError: The file is empty, too large, not an image, damaged, or smaller than the model's
            images.
    """
    from igpt_tf.data.decoding import decode_bytes  # imports TensorFlow

    return decode_bytes(content, image_size, name=name)[None]


def _convert(content, fields: type):
    try:
        return msgspec.convert(content, fields)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        field = f"{place.rstrip('`')} is wrong: " if place else ""
        raise InputError(f"{field}{problem}") from None


def _decode_data_url(url: str, image_size: tuple[int, int]) -> np.ndarray:
    if not url.startswith(_DATA_URL):
        raise InputError(f"image must be a data URL, {_DATA_URL}...")
    try:
        content = base64.b64decode(url[len(_DATA_URL) :], validate=True)
    except ValueError as error:
        raise InputError(f"image is not base64 ({error})") from None
    return decode_upload(content, "image", image_size)


def _parse_hidden(hidden: list[int] | None, image_size: tuple[int, int]) -> np.ndarray | None:
    if hidden is None:
        return None
    num_pixels = image_size[0] * image_size[1]
    if len(hidden) != num_pixels or not set(hidden) <= {0, 1}:
        raise InputError(f"hidden must be {num_pixels} zeros and ones, one per pixel")
    return np.reshape(np.array(hidden, bool), (1, *image_size))


def _as_float32(value: float) -> float:
    """Numbers beyond float32 become infinite or 0, which the limits then reject."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(value))
