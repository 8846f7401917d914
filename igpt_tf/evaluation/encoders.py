"""Images to feature vectors: a pretrained model, and what it has to be compared with."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.savedmodel.load import SavedModel


@dataclass(frozen=True)
class Encoder:
    """A function of images with a name and an identity.

    Attributes:
        title: For people.
        fingerprint: Equal for equal functions, in this process and the next.
        encode: uint8[B,H,W,3] -> number[B,K,D], K alternative vectors ("layers") an image.
    """

    title: str
    fingerprint: str
    encode: Callable[[np.ndarray], np.ndarray]


def pretrained(model: SavedModel) -> Encoder:
    """The L + 1 layers of a SavedModel.

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


def random_network(model: SavedModel, seed: int) -> Encoder:
    """A network of the model's shape and palette that was never trained."""
    keras.utils.set_random_seed(seed)
    network = ImageGPT(**model.metadata["model"])
    features = tf.function(network.features, reduce_retracing=True)
    return Encoder(
        title="random network",
        fingerprint=_digest("random", model.metadata["model"], model.palette.fingerprint, seed),
        encode=lambda images: features(tf.constant(model.palette.encode(images))).numpy(),
    )


def raw_pixels() -> Encoder:
    """The pixels themselves, D = H * W * 3."""
    return Encoder(
        title="raw pixels",
        fingerprint=_digest("raw pixels"),
        encode=lambda images: images.reshape(len(images), 1, -1),
    )


def palette_counts(model: SavedModel) -> Encoder:
    """How often each colour of the palette occurs, D = V: the image without its places."""
    palette = model.palette

    def encode(images):
        tokens = palette.encode(images)
        rows = np.arange(len(tokens))[:, None] * len(palette)
        counts = np.bincount((tokens + rows).reshape(-1), minlength=len(tokens) * len(palette))
        return counts.reshape(len(tokens), 1, -1).astype("uint16")

    return Encoder("palette counts", _digest("palette counts", palette.fingerprint), encode)


def folder_fingerprint(path: str) -> str:
    """Hex digest of the files of a SavedModel, their names and contents."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            digest.update(os.path.relpath(file, path).encode())
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def check_fits(model: SavedModel, image_size: tuple[int, int]) -> None:
    """Raises: InputError: The images are not of the model's size."""
    wanted = tuple(model.metadata["model"]["image_size"])
    if tuple(image_size) != wanted:
        raise InputError(
            f"the model sees images of {wanted[0]}x{wanted[1]} pixels; give the data set that "
            f"image_size. Received: image_size={tuple(image_size)}"
        )


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
