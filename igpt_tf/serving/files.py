"""Image files at the door: what is sent to a server, and what is refused before."""

import io
import os
import warnings

import numpy as np
from PIL import Image

from igpt_tf import runtime
from igpt_tf.errors import InputError
from igpt_tf.sampling.params import MAX_FILE_BYTES, MAX_FILE_PIXELS, MAX_IMAGES

_ENDINGS = (".png", ".jpg", ".jpeg")


def find(paths: list[str] | None) -> list[str]:
    """Image files, of folders the .png and .jpg ones. Raises: InputError."""
    files = [file for path in paths or () for file in _files(path)]
    if not 1 <= len(files) <= MAX_IMAGES:
        raise InputError(
            f"name 1 to {MAX_IMAGES} image files, or folders of them. "
            f"Received: {len(files)} files, images={paths}"
        )
    return files


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    names = sorted(os.listdir(path))
    return [os.path.join(path, name) for name in names if name.lower().endswith(_ENDINGS)]


def read(path: str) -> bytes:
    """The content of a PNG or JPEG file within the limits.

    Raises:
        InputError: It cannot be read, is too large, no image, or one that would fill the memory.
    """
    try:
        num_bytes = os.path.getsize(path)
        if not 0 < num_bytes <= MAX_FILE_BYTES:
            raise InputError(
                f"an image file must have 1 to {MAX_FILE_BYTES} bytes. "
                f"Received: bytes={num_bytes}, path={path}"
            )
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(
            f"an image file cannot be read ({error.strerror}). Received: path={path}"
        ) from None
    check(content, path)
    return content


def check(content: bytes, path: str) -> None:
    """Looks at the header only: decoding is what a bomb waits for. Raises: InputError."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            width, height = Image.open(io.BytesIO(content), formats=("PNG", "JPEG")).size
    except Image.DecompressionBombError:
        width = height = MAX_FILE_PIXELS
    except (OSError, SyntaxError, ValueError):
        raise InputError(f"an image must be a PNG or JPEG file. Received: path={path}") from None
    if width * height > MAX_FILE_PIXELS:
        raise InputError(
            f"an image must have at most {MAX_FILE_PIXELS} pixels. Received: path={path}"
        )


def pixels(paths: list[str], image_size: tuple[int, int]) -> np.ndarray:
    """uint8[N,H,W,3]: the files shrunk and cropped as for training. Raises: InputError."""
    runtime.import_tensorflow()  # which the data room brings with it, otherwise with notices
    from igpt_tf.data.images import decode

    return np.stack([decode(read(path), path, image_size) for path in paths])
