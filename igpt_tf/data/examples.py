"""Images that can be indexed: the protocol `Examples`, in memory, and in image files.

Making examples does not start TensorFlow, so that a source can be built before the distribution
strategy; images that are kept in memory are read when the first batch is loaded.
"""

import copy
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igpt_tf.data import decoding
from igpt_tf.data.stateless_random import epoch_order, row_uniform
from igpt_tf.errors import InputError, check_choice

CROPS = ("centre", "random")
_SAMPLE = 4096  # bytes of a file that are read at once for its fingerprint
_NUM_READERS, _CHUNK = 8, 256  # threads, and files that each takes at once


class Examples(Protocol):
    """A number of images of one size, with labels or without.

    The input pipeline calls `order` and `load` inside a TensorFlow graph, where no Python runs
    afterwards; the other methods run on the host.

    Attributes:
        labels: int32[N], or None.
        image_size: (H, W).
        is_fixed: Whether an image is the same each time it is loaded; False with random crops.
    """

    labels: np.ndarray | None
    image_size: tuple[int, int]
    is_fixed: bool

    def __len__(self) -> int:
        """N."""

    def order(self, positions: tf.Tensor, seed: int, shuffle: bool) -> tf.Tensor:
        """int64[b]: the image at each of the `positions` int64[b] of a run; see `epoch_order`."""

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """uint8[b,H,W,3] of `indices` int64[b]; random crops depend on `seeds` int32[b,2] alone."""

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at `indices` int[M]."""

    def centre_cropped(self) -> "Examples":
        """The same images with the centre crop instead of a random one, for evaluation."""

    def without_labels(self) -> "Examples":
        """The same images without labels."""

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(images uint8[N,H,W,3] with the centre crop, labels). Raises: InputError."""

    def check(self, indices: np.ndarray | None = None) -> None:
        """Reads the images at `indices`, or all. Raises: InputError, which names a bad file."""

    def fingerprint(self) -> str:
        """Hex digest, by which changed images are noticed. Raises: InputError."""


class ArrayExamples:
    """Images in memory.

    Args:
        images: uint8[N,H,W,3].
        labels: int[N], or None.

    Attributes:
        images: uint8[N,H,W,3], read-only once a batch was loaded.
        labels, image_size, is_fixed: See `Examples`.

    Example:
        examples = ArrayExamples(np.zeros([10, 8, 8, 3], "uint8"), np.arange(10))
    """

    is_fixed = True

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None):
        self.images = np.ascontiguousarray(images)
        self.labels = None if labels is None else np.asarray(labels, "int32")
        self.image_size = tuple(images.shape[1:3])
        self._tensor = None

    def __len__(self) -> int:
        return len(self.images)

    def order(self, positions: tf.Tensor, seed: int, shuffle: bool) -> tf.Tensor:
        return epoch_order(positions, len(self), seed, shuffle)

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        del seeds
        return tf.gather(self._host_tensor(), indices)

    def take(self, indices: np.ndarray) -> "ArrayExamples":
        labels = None if self.labels is None else self.labels[indices]
        return ArrayExamples(self.images[indices], labels)

    def centre_cropped(self) -> "ArrayExamples":
        return self

    def without_labels(self) -> "ArrayExamples":
        return ArrayExamples(self.images)

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self.images, self.labels

    def check(self, indices: np.ndarray | None = None) -> None:
        """Does nothing: images in memory can be read."""

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"arrays {self.images.shape}".encode())
        digest.update(self.images.data)
        return digest.hexdigest()

    def _host_tensor(self) -> tf.Tensor:
        if self._tensor is None:
            # Outside the graph, where the images would be a constant (of at most 2 GiB).
            with tf.init_scope(), tf.device("CPU:0"):
                self._tensor = tf.constant(self.images)
            # A view of the tensor, so that the images are in memory once.
            self.images = np.asarray(memoryview(self._tensor))
        return self._tensor


class FileExamples:
    """Images in files, decoded when they are loaded, or all at the first load.

    Args:
        paths: The files, N of them.
        labels: int[N], or None.
        image_size: (H, W) to which the images are resized.
        crop: "centre", or "random" (the paper's ImageNet recipe).
        in_memory: Whether to keep the decoded images in memory; for the centre crop.
        enlarge, background: See `decoding.decode_image`.

    Attributes:
        paths, crop: As given.
        labels, image_size, is_fixed: See `Examples`.

    Raises:
        InputError: `crop` is neither of the two.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: np.ndarray | None,
        image_size: tuple[int, int],
        crop: str = "centre",
        *,
        in_memory: bool = False,
        enlarge: bool = False,
        background: tuple[int, int, int] = decoding.WHITE,
    ):
        check_choice("crop", crop, CROPS)
        self.paths = np.array([os.fspath(path) for path in paths], dtype=object)
        self.labels = None if labels is None else np.asarray(labels, "int32")
        self.image_size = tuple(image_size)
        self.crop = crop
        self._options = {"enlarge": enlarge, "background": tuple(background)}
        self._in_memory = in_memory
        self._decoded = None  # ArrayExamples, once decoded

    @property
    def is_fixed(self) -> bool:
        return self.crop == "centre"

    def __len__(self) -> int:
        return len(self.paths)

    def order(self, positions: tf.Tensor, seed: int, shuffle: bool) -> tf.Tensor:
        return epoch_order(positions, len(self), seed, shuffle)

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        if self._in_memory and self.is_fixed:
            return self._array_examples().load(indices, seeds)
        crops = None
        if not self.is_fixed:
            uniform = tf.stack([row_uniform(seeds, stream) for stream in range(3)], axis=1)
            crops = decoding.random_crops(uniform)
        with tf.init_scope(), tf.device("CPU:0"):  # a million paths are too many for a constant
            paths = tf.constant([os.fsencode(path) for path in self.paths])
        chosen = tf.gather(paths, indices)
        return decoding.decode_files(chosen, self.image_size, crops, **self._options)

    def take(self, indices: np.ndarray) -> "FileExamples":
        taken = copy.copy(self)
        taken.paths = self.paths[indices]
        taken.labels = None if self.labels is None else self.labels[indices]
        if self._decoded is not None:
            taken._decoded = self._decoded.take(indices)
        return taken

    def centre_cropped(self) -> "FileExamples":
        return self.with_crop("centre")

    def with_crop(self, crop: str) -> "FileExamples":
        """The same files with "centre" or "random" crops."""
        cropped = copy.copy(self)
        cropped.crop = crop
        return cropped

    def without_labels(self) -> "FileExamples":
        unlabelled = copy.copy(self)
        unlabelled.labels = None
        return unlabelled

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        images = self._array_examples().images if self._in_memory else self._decode(self.paths)
        return images, self.labels

    def check(self, indices: np.ndarray | None = None) -> None:
        paths = self.paths if indices is None else self.paths[indices]
        for start in range(0, len(paths), 1024):  # so many decoded images are in memory at once
            self._decode(paths[start : start + 1024])

    def fingerprint(self) -> str:
        """Hex digest of the files' paths below their common folder, sizes and content, and of how
        they are shown. The content is sampled, see `_content_sample`."""
        options = sorted(self._options.items())
        digest = hashlib.sha256(f"files {self.image_size} {self.crop} {options}".encode())
        paths = [os.path.abspath(path) for path in self.paths]
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
        progress = tqdm(desc="fingerprint", total=len(paths), unit="file", delay=2, leave=False)
        with progress, ThreadPoolExecutor(_NUM_READERS) as threads:
            for chunk, samples in zip(chunks, threads.map(_content_samples, chunks), strict=True):
                for path, sample in zip(chunk, samples, strict=True):
                    digest.update(os.fsencode(os.path.relpath(path, folder)))
                    digest.update(sample)
                progress.update(len(chunk))
        return digest.hexdigest()

    def _array_examples(self) -> ArrayExamples:
        if self._decoded is None:
            self._decoded = ArrayExamples(self._decode(self.paths))
        return self._decoded

    def _decode(self, paths: np.ndarray) -> np.ndarray:
        return decoding.load_images(paths, self.image_size, **self._options)


def _content_samples(paths: list[str]) -> list[bytes]:
    return [_content_sample(path) for path in paths]


def _content_sample(path: str) -> bytes:
    """Digest of a file's size and of 4 KiB at its start, in its middle and at its end.

    Reads all of a file up to 12 KiB. Another image of the same size in bytes differs in the sample;
    a few pixels edited in a large uncompressed file may not be noticed. Dates are left out, because
    copies and clones change them.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= 3 * _SAMPLE:
                parts = [file.read()]
            else:
                starts = (0, (size - _SAMPLE) // 2, size - _SAMPLE)
                parts = [os.pread(file.fileno(), _SAMPLE, start) for start in starts]
    except OSError as error:
        raise InputError(
            f"an image file cannot be read ({error.strerror}); restore it, or start again without "
            f"it. Received: file={path}"
        ) from None
    return hashlib.sha256(b"".join([b"%d " % size, *parts])).digest()
