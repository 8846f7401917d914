"""Features of images: encoders, i.e. functions from images to vectors, and their cache on disk."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igpt_tf import files
from igpt_tf.data import evaluation_batches, iterate
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import objective_from_config
from igpt_tf.savedmodel.load import SavedModel, load_model

_CHUNK = 4096  # rows read at a time


@dataclass(frozen=True)
class Encoder:
    """A function from images to feature vectors.

    Attributes:
        title: Name for tables and plots.
        fingerprint: Equal for equal functions, also in other processes.
        encode: uint8[B,H,W,3] -> number[B,K,D], K vectors per image, one per layer.
    """

    title: str
    fingerprint: str
    encode: Callable[[np.ndarray], np.ndarray]


def pretrained_encoder(model: SavedModel) -> Encoder:
    """The L + 1 layers of a SavedModel, without masking.

    Raises:
        InputError: The model has no signature `features`.

    Source: paper, section 2.4.
    """
    features = model.signature("features")
    return Encoder(
        title="pretrained network",
        fingerprint=folder_fingerprint(model.path),
        encode=lambda images: features(images=images)["features"],
    )


def has_random_inputs(model: SavedModel) -> bool:
    """Whether the model was trained on inputs with random changes, as masked models are."""
    objective = objective_from_config(model.metadata["objective"])
    return bool(objective.random_inputs(seed=0, step=0, batch_size=1, sequence_length=1))


def masked_encoders(model: SavedModel, num_masks: int) -> list[Encoder]:
    """The L + 1 layers of a masked model under `num_masks` random masks, one encoder per mask.

    Positions are masked with the probability of the model's objective, as in pretraining. The
    masks of an image are a function of its pixels and of the index of the mask, so that features
    depend neither on the batch size nor on the order of the images.

    Source: paper, section 3.4: inputs are masked at evaluation too, to keep them in-distribution.
    """
    network, palette, metadata = load_model(model.path)
    objective = objective_from_config(metadata["objective"])

    def random_inputs(seed, mask_index):
        inputs = objective.random_inputs(
            seed=seed, step=mask_index, batch_size=1, sequence_length=network.sequence_length
        )
        return {name: values[0] for name, values in inputs.items()}

    specs = {
        name: tf.TensorSpec(values.shape, values.dtype)
        for name, values in random_inputs(0, 0).items()
    }

    @tf.function(reduce_retracing=True, autograph=False)
    def features(tokens, seeds, mask_index):
        inputs = tf.map_fn(
            lambda seed: random_inputs(seed, mask_index), seeds, fn_output_signature=specs
        )
        return network.features(tokens, **inputs)

    def encode(images: np.ndarray, mask_index: int) -> np.ndarray:
        seeds = np.array([zlib.crc32(image.tobytes()) & 0x7FFFFFFF for image in images], "int32")
        tokens = tf.constant(palette.encode(images))
        return features(tokens, tf.constant(seeds), tf.constant(mask_index)).numpy()

    fingerprint = folder_fingerprint(model.path)
    return [
        Encoder(
            title="pretrained network",
            fingerprint=_digest("masked", fingerprint, metadata["objective"], index),
            encode=lambda images, index=index: encode(images, index),
        )
        for index in range(num_masks)
    ]


def untrained_encoder(model: SavedModel, seed: int) -> Encoder:
    """The L + 1 layers of a network of the same shape with random weights."""
    keras.utils.set_random_seed(seed)
    network = ImageGPT(**model.metadata["model"])
    features = tf.function(network.features, reduce_retracing=True, autograph=False)
    return Encoder(
        title="untrained network",
        fingerprint=_digest("untrained", model.metadata["model"], model.palette.fingerprint, seed),
        encode=lambda images: features(tf.constant(model.palette.encode(images))).numpy(),
    )


def raw_pixels_encoder() -> Encoder:
    """The pixels themselves, D = H * W * 3."""
    return Encoder(
        title="raw pixels",
        fingerprint=_digest("raw pixels"),
        encode=lambda images: images.reshape(len(images), 1, -1),
    )


def palette_counts_encoder(model: SavedModel) -> Encoder:
    """The histogram of an image's tokens, D = V: its colours without their positions."""
    palette = model.palette

    def encode(images):
        tokens = palette.encode(images)
        offsets = np.arange(len(tokens))[:, None] * len(palette)
        counts = np.bincount((tokens + offsets).reshape(-1), minlength=len(tokens) * len(palette))
        return counts.reshape(len(tokens), 1, -1).astype("uint16")

    return Encoder("palette counts", _digest("palette counts", palette.fingerprint), encode)


def folder_fingerprint(path: str) -> str:
    """Hex digest of the names and contents of a SavedModel's files."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            digest.update(os.path.relpath(file, path).encode())
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Features:
    """Features of N images in K layers, stored in one file per layer.

    Args:
        folder: Holds `layer_0.npy`, `layer_1.npy`, ..., each number[N,D].
        labels: int[N].
    """

    def __init__(self, folder: str, labels: np.ndarray):
        self.folder = folder
        self.labels = np.asarray(labels)
        self.num_layers = len(os.listdir(folder))

    def open(self, layer: int) -> np.ndarray:
        """number[N,D], memory-mapped."""
        return np.load(_layer_file(self.folder, layer), mmap_mode="r", allow_pickle=False)


class FeatureMatrix:
    """A matrix float32[N,D] with labels; rows are read from the cache on demand.

    Args:
        parts: Features whose images are concatenated, e.g. of the train and valid split.
        layers: Layers whose features are concatenated.
        rows: int[M], the rows to use; all of them if None.

    Attributes:
        labels: int[N].
    """

    def __init__(
        self, parts: Sequence[Features], layers: Sequence[int], rows: np.ndarray | None = None
    ):
        self._parts = parts
        self._layers = layers
        labels = np.concatenate([part.labels for part in parts])
        self._rows = np.arange(len(labels)) if rows is None else np.asarray(rows)
        self.labels = labels[self._rows]

    def __len__(self) -> int:
        return len(self.labels)

    def array(self) -> np.ndarray:
        """The whole matrix, float32[N,D]."""
        return self.take(np.arange(len(self)))

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (float32[M,D], labels int[M]) of successive rows, a few thousand at a time."""
        for start in range(0, len(self), _CHUNK):
            indices = np.arange(start, min(start + _CHUNK, len(self)))
            yield self.take(indices), self.labels[indices]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The rows `indices` int[M], float32[M,D]."""
        indices = self._rows[indices]
        starts = np.cumsum([0] + [len(part.labels) for part in self._parts])
        columns = np.cumsum([0] + [self._parts[0].open(layer).shape[1] for layer in self._layers])
        matrix = np.empty((len(indices), columns[-1]), "float32")
        for part, (start, stop) in zip(self._parts, itertools.pairwise(starts), strict=True):
            inside = np.flatnonzero((indices >= start) & (indices < stop))
            for layer, (left, right) in zip(self._layers, itertools.pairwise(columns), strict=True):
                matrix[inside, left:right] = part.open(layer)[indices[inside] - start]
        return matrix


def cached_features(
    encoders: Sequence[Encoder],
    examples: Examples,
    directory: str,
    *,
    batch_size: int,
    title: str = "features",
) -> list[Features]:
    """Features of all examples, of each encoder; those that are not in the cache are computed.

    All of them are computed in one pass, so that each image is decoded once.

    Args:
        encoders: Applied to every image.
        examples: N labelled images; evaluated with the centre crop.
        directory: The cache. Each entry is a folder named after the fingerprints of an encoder
            and of the images: another model, data set or preprocessing has another entry.
        batch_size: Images per call of an encoder.
        title: Title of the progress bar.

    Raises:
        InputError: An image cannot be read, the disk is full, or `batch_size` is not positive.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be a positive integer. Received: {batch_size=}")
    examples = examples.centre_cropped()  # as `evaluation_batches` crops them
    images = examples.fingerprint()
    keys = [f"{encoder.fingerprint} {images}".encode() for encoder in encoders]
    folders = [os.path.join(directory, hashlib.sha256(key).hexdigest()[:16]) for key in keys]
    if not all(map(os.path.isdir, folders)):
        try:
            os.makedirs(directory, exist_ok=True)
            lock = os.path.join(directory, ".lock")
            waiting = f"waiting for another program that writes into {directory} ..."
            with files.lock(lock, waiting=waiting):
                missing = {
                    folder: encoder
                    for folder, encoder in zip(folders, encoders, strict=True)
                    if not os.path.isdir(folder)  # another program may have written it meanwhile
                }
                if missing:
                    _compute(missing, examples, batch_size, title)
        except OSError as error:
            raise InputError(
                f"the features cannot be stored ({error}); free some space. Received: {directory=}"
            ) from None
    return [Features(folder, examples.labels) for folder in folders]


def _compute(missing: dict[str, Encoder], examples: Examples, batch_size: int, title: str):
    """Writes the features of each encoder into its folder."""
    writers = {}
    batches = iterate(evaluation_batches(examples, batch_size=batch_size), examples)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tqdm(total=len(examples), unit="image", desc=title))
        for batch in batches:
            images = batch["images"].numpy()
            size = int(batch["weight"].numpy().sum())  # without the padding of the last batch
            for folder, encoder in missing.items():
                features = np.asarray(encoder.encode(images))[:size]
                if folder not in writers:
                    writers[folder] = _create(
                        stack, folder + files.TEMPORARY, features, len(examples)
                    )
                # Plain writes: pages of a memory map would count as memory of this process.
                for layer, file in enumerate(writers[folder]):
                    file.write(np.ascontiguousarray(features[:, layer]).tobytes())
            progress.update(size)
    for folder in missing:
        files.replace_folder(folder + files.TEMPORARY, folder)


def _create(stack: contextlib.ExitStack, folder: str, features: np.ndarray, size: int) -> list:
    """Opens one `.npy` file per layer of `features` number[B,K,D] and writes its header."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    _, num_layers, dim = features.shape
    description = np.lib.format.dtype_to_descr(features.dtype)
    header = {"descr": description, "fortran_order": False, "shape": (size, dim)}
    layer_files = []
    for layer in range(num_layers):
        layer_files.append(stack.enter_context(open(_layer_file(folder, layer), "wb")))
        np.lib.format.write_array_header_1_0(layer_files[-1], header)
    return layer_files


def _layer_file(folder: str, layer: int) -> str:
    return os.path.join(folder, f"layer_{layer}.npy")
