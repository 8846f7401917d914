"""Images one can index: in memory (`ArrayExamples`) or in files (`FileExamples`).

Both offer `len()`, `labels`, `image_size`, `load(indices, seeds)` inside a TensorFlow graph,
`take(indices)`, `centred()`, `arrays()`, `check()` and `fingerprint()`. Making one does not start
TensorFlow, so a source may be built before the distribution strategy.
"""

import copy
import functools
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from igpt_tf.data import decoding
from igpt_tf.data import images as one_image
from igpt_tf.data.stateless_random import row_uniform
from igpt_tf.errors import InputError

CROPS = ("center", "random")
_SMALL_FILE = 32 * 2**10  # bytes
_READ_AHEAD = 2048  # files


class ArrayExamples:
    """Images in memory.

    Args:
        images: uint8[N,H,W,3].
        labels: int[N], or None.

    Attributes:
        images: uint8[N,H,W,3], read-only once a batch was loaded.
        labels: int32[N] or None.
        image_size: (H, W).
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None):
        self.images = np.ascontiguousarray(images)
        self.labels = None if labels is None else np.asarray(labels, "int32")
        self.image_size = tuple(images.shape[1:3])
        self._tensor = None

    def __len__(self) -> int:
        return len(self.images)

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """uint8[B,H,W,3] of `indices` int64[B]; `seeds` int32[B,2] change nothing here."""
        del seeds
        return tf.gather(self._on_host(), indices)

    def take(self, indices: np.ndarray) -> "ArrayExamples":
        """The examples at `indices` int[M]."""
        labels = None if self.labels is None else self.labels[indices]
        return ArrayExamples(self.images[indices], labels)

    def centred(self) -> "ArrayExamples":
        """Itself: images in memory are cropped for good."""
        return self

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(images uint8[N,H,W,3], labels int32[N] or None)."""
        return self.images, self.labels

    def check(self) -> None:
        """Nothing: what is in memory can be read."""

    def fingerprint(self) -> str:
        """Hex digest of the images, pixel by pixel."""
        digest = hashlib.sha256(f"arrays {self.images.shape}".encode())
        digest.update(self.images.data)
        return digest.hexdigest()

    def _on_host(self) -> tf.Tensor:
        if self._tensor is None:
            # Outside the graph, where the images would be a constant (of at most 2 GiB).
            with tf.init_scope(), tf.device("CPU:0"):
                self._tensor = tf.constant(self.images)
            # A view of the tensor, so that the images lie in memory once.
            self.images = np.asarray(memoryview(self._tensor))
        return self._tensor


class FileExamples:
    """Images in PNG or JPEG files, decoded when they are asked for.

    Args:
        paths: The files, N of them.
        labels: int[N], or None.
        image_size: (H, W) the images are resized to.
        crop: "center", or "random" (the paper's ImageNet recipe).

    Attributes:
        paths, labels, image_size, crop: As given; labels as int32[N].
    """

    def __init__(self, paths, labels, image_size, crop: str = "center"):
        if crop not in CROPS:
            raise InputError(f"a crop is one of {', '.join(CROPS)}. Received: crop={crop!r}")
        self.paths = np.array([os.fspath(path) for path in paths], dtype=object)
        self.labels = None if labels is None else np.asarray(labels, "int32")
        self.image_size = tuple(image_size)
        self.crop = crop

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """uint8[B,H,W,3] of `indices` int64[B]; `seeds` int32[B,2] place the random crops."""
        if self.crop == "random":
            uniform = tf.stack([row_uniform(seeds, stream) for stream in range(3)], axis=1)
            draws = decoding.random_draws(uniform)
        else:
            draws = decoding.centre_draws(tf.size(indices))
        with tf.init_scope(), tf.device("CPU:0"):  # a million paths are no constant for a graph
            paths = tf.constant(self.paths.tolist())
        return decoding.decode_batch(tf.gather(paths, indices), draws, self.image_size)

    def take(self, indices: np.ndarray) -> "FileExamples":
        """The examples at `indices` int[M]."""
        labels = None if self.labels is None else self.labels[indices]
        return FileExamples(self.paths[indices], labels, self.image_size, self.crop)

    def centred(self) -> "FileExamples":
        """The same files with the centre crop, for evaluations and probes."""
        centred = copy.copy(self)
        centred.crop = "center"
        return centred

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(images uint8[N,H,W,3], labels int32[N] or None), always with the centre crop.

        Raises:
            InputError: Names the first file that cannot be read.
        """
        images = np.empty((len(self), *self.image_size, 3), "uint8")
        for group, decoded in self._groups():
            images[group] = decoded
        return images, self.labels

    def check(self) -> None:
        """Decodes every file. Raises: InputError, naming the first that cannot be read."""
        for _ in self._groups():
            pass

    def fingerprint(self) -> str:
        """Hex digest of the files' paths, sizes and dates, and of how they are shown.

        Raises:
            InputError: Names the first file that cannot be found.
        """
        digest = hashlib.sha256(f"upright files {self.image_size} {self.crop}".encode())
        for path in self.paths:
            num_bytes, date = one_image.size_and_date(path)
            digest.update(f" {path} {num_bytes} {date}".encode())
        return digest.hexdigest()

    def _groups(self) -> Iterator[tuple[slice, list[np.ndarray]]]:
        with ThreadPoolExecutor() as threads:
            for start in range(0, len(self), _READ_AHEAD):
                group = slice(start, start + _READ_AHEAD)
                yield group, self._decoded(threads, self.paths[group])

    def _decoded(self, threads: ThreadPoolExecutor, paths: np.ndarray) -> list[np.ndarray]:
        if not self._files_are_small:
            return list(threads.map(self._decode, paths))
        # Threads that decode tiny files only wait for the interpreter's lock; let them read ahead.
        contents = threads.map(one_image.read, paths)
        return [
            one_image.decode(content, path, self.image_size)
            for path, content in zip(paths, contents, strict=True)
        ]

    def _decode(self, path: str) -> np.ndarray:
        return one_image.decode(one_image.read(path), path, self.image_size)

    @functools.cached_property
    def _files_are_small(self) -> bool:
        some = self.paths[:: max(1, len(self) // 16)]
        sizes = [os.path.getsize(path) for path in some if os.path.exists(path)]
        return not sizes or np.mean(sizes) < _SMALL_FILE
