"""Features on disk: computed in one pass over the images, one file a layer, kept for next time."""

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from igpt_tf.data import evaluation_batches, iterate
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.evaluation.encoders import Encoder

_CHUNK = 4096  # rows


class Features:
    """The features of N images under K layers, in files.

    Args:
        folder: Holds `layer_0.npy`, `layer_1.npy`, ..., each number[N,D].
        labels: int[N].
    """

    def __init__(self, folder: str, labels: np.ndarray):
        self.folder = folder
        self.labels = np.asarray(labels)
        self.num_layers = len(os.listdir(folder))

    def open(self, layer: int) -> np.ndarray:
        """number[N,D], read from the file as it is used."""
        return np.load(_layer_file(self.folder, layer), mmap_mode="r", allow_pickle=False)


class Rows:
    """A matrix float32[N,D] and its labels, put together from files only when it is asked for.

    Args:
        parts: Features whose images follow one another, such as train and held-out.
        layers: Layers laid side by side.
        chosen: int[N], the rows to use of all; all of them if None.

    Attributes:
        labels: int[N].
    """

    def __init__(
        self,
        parts: Sequence[Features],
        layers: Sequence[int],
        chosen: np.ndarray | None = None,
    ):
        self._parts = parts
        self._layers = layers
        labels = np.concatenate([part.labels for part in parts])
        self._chosen = np.arange(len(labels)) if chosen is None else np.asarray(chosen)
        self.labels = labels[self._chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def array(self) -> np.ndarray:
        """float32[N,D], all in memory."""
        return self.take(np.arange(len(self)))

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (float32[M,D], labels int[M]) of successive rows, M small."""
        for start in range(0, len(self), _CHUNK):
            indices = np.arange(start, min(start + _CHUNK, len(self)))
            yield self.take(indices), self.labels[indices]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """float32[M,D]: the rows `indices` int[M]."""
        indices = self._chosen[indices]
        starts = np.cumsum([0] + [len(part.labels) for part in self._parts])
        columns = np.cumsum([0] + [self._parts[0].open(layer).shape[1] for layer in self._layers])
        rows = np.empty((len(indices), columns[-1]), "float32")
        for part, (start, stop) in zip(self._parts, itertools.pairwise(starts), strict=True):
            inside = np.flatnonzero((indices >= start) & (indices < stop))
            for layer, (left, right) in zip(self._layers, itertools.pairwise(columns), strict=True):
                rows[inside, left:right] = part.open(layer)[indices[inside] - start]
        return rows


def cached_features(
    encoder: Encoder, examples: Examples, directory: str, *, batch_size: int, title: str = ""
) -> Features:
    """The features of all examples, from the cache if they were computed before.

    Args:
        encoder: Applied to each image.
        examples: N labelled images, seen with the centre crop.
        directory: The cache. A folder in it is named by what the encoder and the images are, so
            that a changed model, data set or preprocessing never meets old features.
        batch_size: Images at a time.
        title: For the progress bar.

    Raises:
        InputError: An image cannot be read, the disk is full, or `batch_size` is no size.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(
            f"batch_size is a whole number of images, 1 or more. Received: {batch_size=}"
        )
    examples = examples.centred()  # as `evaluation_batches` shows them
    key = hashlib.sha256(f"{encoder.fingerprint} {examples.fingerprint()}".encode())
    folder = os.path.join(directory, key.hexdigest()[:16])
    if not os.path.isdir(folder):
        try:
            _compute(encoder, examples, folder + ".part", batch_size, title)
            os.rename(folder + ".part", folder)  # a folder that has its name is complete
        except OSError as error:
            raise InputError(
                f"the features cannot be kept ({error}); make room. {folder=}"
            ) from None
    return Features(folder, examples.labels)


def _compute(encoder: Encoder, examples: Examples, folder: str, batch_size: int, title: str):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    batches = iterate(evaluation_batches(examples, batch_size=batch_size), examples)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(examples), unit="image", desc=title))
        files = None
        for batch in batches:
            real = int(batch["weight"].numpy().sum())
            features = np.asarray(encoder.encode(batch["images"].numpy()))[:real]
            if files is None:
                files = _create(stack, folder, features, len(examples))
            # Plain writes: pages of a memory map would count as this process's memory.
            for layer, file in enumerate(files):
                file.write(np.ascontiguousarray(features[:, layer]).tobytes())
            bar.update(real)


def _create(stack: contextlib.ExitStack, folder: str, features: np.ndarray, size: int) -> list:
    """Opens a `.npy` file for each layer of `features` number[B,K,D], the header written."""
    _, num_layers, dim = features.shape
    description = np.lib.format.dtype_to_descr(features.dtype)
    header = {"descr": description, "fortran_order": False, "shape": (size, dim)}
    files = []
    for layer in range(num_layers):
        files.append(stack.enter_context(open(_layer_file(folder, layer), "wb")))
        np.lib.format.write_array_header_1_0(files[-1], header)
    return files


def _layer_file(folder: str, layer: int) -> str:
    return os.path.join(folder, f"layer_{layer}.npy")
