"""The MNIST family: idx files, plain or gzipped."""

import gzip
import os
import struct

import numpy as np

from igpt_tf.data.sources import Source, array_examples, heldout_split, register
from igpt_tf.errors import InputError

_CLOTHING = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_UNSIGNED_BYTE = 8  # code of the element type in an idx file


@register
def mnist(*, directory: str, image_size=(28, 28), heldout: float = 0.1, seed: int = 0) -> Source:
    """MNIST, or any set with its file names and ten classes called 0 to 9 (KMNIST, QMNIST ...).

    Args:
        directory: Holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the `t10k` pair,
            each plain or with `.gz`.
        image_size: (H, W), at most the files' own.
        heldout: Fraction of the training split held out as `valid`.
        seed: Random seed of that split.

    Raises:
        InputError: A file is missing, cut or not an idx file.

    Source: http://yann.lecun.com/exdb/mnist/ (the idx format).
    """
    return _source(directory, image_size, heldout, seed, tuple("0123456789"))


@register
def fashion_mnist(
    *, directory: str, image_size=(28, 28), heldout: float = 0.1, seed: int = 0
) -> Source:
    """Fashion-MNIST; as `mnist`, with the names of its classes."""
    return _source(directory, image_size, heldout, seed, _CLOTHING)


def _source(directory, image_size, heldout, seed, class_names) -> Source:
    train, test = (
        array_examples(
            _read(directory, f"{part}-images", 3),
            _read(directory, f"{part}-labels", 1),
            image_size,
            len(class_names),
            directory,
        )
        for part in ("train", "t10k")
    )
    return Source(*heldout_split(train, heldout, seed), test, class_names)


def _read(directory: str, stem: str, rank: int) -> np.ndarray:
    """uint8 array of `rank` axes from the idx file `stem`. Raises: InputError."""
    path = _find(directory, stem, rank)
    try:
        with open(path, "rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with (gzip.open if is_gzip else open)(path, "rb") as file:
            return _parse(file, rank)
    except InputError as error:
        raise InputError(f"{error}. Received: path={path}") from None
    # A damaged gzip stream raises EOFError, OSError or zlib.error.
    except Exception as error:
        raise InputError(
            f"an idx file cannot be read ({error}); fetch it again. Received: path={path}"
        ) from None


def _find(directory: str, stem: str, rank: int) -> str:
    names = [f"{stem}{mark}idx{rank}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            return path
    raise InputError(
        f"the folder holds neither {names[0]} nor {names[1]}; fetch the data set's four files. "
        f"Received: directory={directory}"
    )


def _parse(file, rank: int) -> np.ndarray:
    header = file.read(4 + 4 * rank)
    if header[:4] != bytes([0, 0, _UNSIGNED_BYTE, rank]) or len(header) != 4 + 4 * rank:
        raise InputError(
            f"not an idx file of unsigned bytes in {rank} axes (its first bytes are "
            f"{header[:4].hex()}); fetch it again"
        )
    shape = struct.unpack(f">{rank}I", header[4:])
    size = int(np.prod(shape, dtype="object"))
    # One byte more than announced, to detect a file that is too long; in chunks, so that a wrong
    # header does not allocate memory.
    content = bytearray()
    while len(content) <= size and (chunk := file.read(min(2**20, size + 1 - len(content)))):
        content += chunk
    if len(content) != size:
        held = f"only {len(content)}" if len(content) < size else "more"
        raise InputError(f"an idx file announces {size} bytes and holds {held}; fetch it again")
    return np.frombuffer(bytes(content), np.uint8).reshape(shape)
