"""Requests a program makes up by itself: sound ones for every signature, and absurd ones."""

import io

import numpy as np
from PIL import Image

from igpt_tf.sampling.params import MOST_IMAGES
from igpt_tf.savedmodel.spec import Spec

_NUMBERS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 7, "num_rounds": 2}


def sound(inputs: dict[str, Spec], sizes: dict[str, int], batch_size: int) -> dict[str, np.ndarray]:
    """An array for each input; the first images of all batch sizes are the same."""
    return {key: _value(key, spec, sizes, batch_size) for key, spec in inputs.items()}


def _value(key: str, spec: Spec, sizes: dict[str, int], batch_size: int) -> np.ndarray:
    height, width, rng = sizes["H"], sizes["W"], np.random.default_rng(0)
    drawn = {
        "images": lambda: rng.integers(0, 256, (batch_size, height, width, 3)),
        "tokens": lambda: rng.integers(0, sizes["V"], (batch_size, sizes["T"])),
        "known": lambda: rng.random((batch_size, height, width)) < 0.5,
        "num_images": lambda: batch_size,
        "num_given": lambda: sizes["T"] // 2,
    }
    if key == "image_bytes":
        return files([_png(rng, 2 * height, 3 * width) for _ in range(batch_size)])
    value = drawn[key]() if key in drawn else _NUMBERS[key]
    return np.asarray(value, spec.dtype)


def files(contents: list[bytes]) -> np.ndarray:
    """Bytes as `Session.run` takes them."""
    array = np.empty(len(contents), object)
    array[:] = contents
    return array


def _png(rng, height: int, width: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype("uint8")).save(content, "PNG")
    return content.getvalue()


def _bomb() -> bytes:
    """A small file whose header promises 2^30 pixels."""
    content = bytearray(_png(np.random.default_rng(0), 8, 8))
    content[16:24] = (2**15).to_bytes(4, "big") * 2
    return bytes(content)


def absurd(sizes: dict[str, int]) -> list[tuple[str, np.ndarray, str]]:
    """(input, a value of it that must be refused, a word of the refusal)."""
    return [
        ("image_bytes", files([b"not an image"]), "PNG or JPEG"),
        ("image_bytes", files([b""]), "bytes"),
        ("image_bytes", files([_bomb()]), "pixels"),
        ("num_images", np.int32(0), "num_images"),
        ("num_images", np.int32(MOST_IMAGES + 1), "num_images"),
        ("num_given", np.int32(sizes["T"] + 1), "num_given"),
        ("num_given", np.int32(-1), "num_given"),
        ("temperature", np.float32("nan"), "temperature"),
        ("temperature", np.float32("inf"), "temperature"),
        ("temperature", np.float32(-1), "temperature"),
        ("top_k", np.int32(-1), "top_k"),
        ("top_p", np.float32(0), "top_p"),
        ("top_p", np.float32(1.5), "top_p"),
        ("tokens", np.full((1, sizes["T"]), sizes["V"], "int32"), "tokens"),
    ]
