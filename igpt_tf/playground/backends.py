"""Where the page's answers come from: a SavedModel in this process, or a server."""

import functools
import threading
from typing import Protocol

import numpy as np

from igpt_tf.errors import InputError
from igpt_tf.serving.client import Client


class Backend(Protocol):
    """A model that answers by signature.

    Attributes:
        location: Path or address of the model, for people.
        metadata: Metadata of the SavedModel; {} if unknown.
        signature_names: Names of the model's signatures.
        image_size: (H, W).
    """

    location: str
    metadata: dict
    signature_names: list[str]
    image_size: tuple[int, int]

    def call(self, name: str, **inputs) -> dict[str, np.ndarray]:
        """Returns the answer of a signature.

        Raises:
            InputError: There is no such signature, or it refuses the values.
        """


class LocalModel:
    """A SavedModel in this process. See `Backend`.

    Args:
        path: As for `savedmodel.load.SavedModel`.

    Raises:
        InputError: The SavedModel is missing or damaged.
    """

    def __init__(self, path: str):
        from igpt_tf.savedmodel.load import SavedModel  # imports TensorFlow

        self._model = SavedModel(path)
        self.location, self.metadata = self._model.path, self._model.metadata
        self.image_size = self._model.image_size
        self.signature_names = self._model.signature_names

    def call(self, name: str, **inputs) -> dict[str, np.ndarray]:
        """See `Backend`."""
        answer = self._model.signature(name)(**inputs)
        if not all(np.all(np.isfinite(array)) for array in answer.values()):
            raise InputError(
                "the model's answer is not finite: its weights are damaged. "
                f"Received: signature={name}, saved_model={self.location}"
            )
        return answer


class ServedModel:
    """A model behind TensorFlow Serving. See `Backend`.

    Args:
        client: Client of the model.
        location: Address of the server.
        metadata: Metadata of the SavedModel that is served, if it is at hand.

    Raises:
        ServerError: The server does not answer, or its model is not one of igpt_tf's.
    """

    def __init__(self, client: Client, location: str, metadata: dict | None = None):
        self.location, self.metadata = f"the server at {location}", metadata or {}
        self.image_size = client.image_size
        self.signature_names = list(client.signatures)
        self.call = client.call


class HeldOutImages:
    """Held-out images of the data set that a model was trained on, read when first used.

    Args:
        metadata: Metadata of the SavedModel.
        image_size: (H, W) of the model.
    """

    def __init__(self, metadata: dict, image_size: tuple[int, int]):
        self._description, self._image_size = metadata.get("data"), tuple(image_size)
        self._lock = threading.Lock()  # a large data set is read once

    def __len__(self) -> int:
        """Number of images. Raises: InputError: The data set is unknown or not here."""
        return len(self._read().valid)

    def load(self, index: int) -> tuple[np.ndarray, str | None]:
        """Returns (image uint8[1,H,W,3], name of its class or None).

        Raises:
            InputError: The data set is unknown, not on this machine, or cannot be read.
        """
        source = self._read()
        images, labels = source.valid.take(np.array([index])).arrays()
        names = source.class_names
        return images, names[labels[0]] if names and labels is not None else None

    def _read(self):
        with self._lock:
            return self._source

    @functools.cached_property
    def _source(self):
        from igpt_tf.data import source_from_description  # imports TensorFlow

        if self._description is None:
            raise InputError("the model does not name its data set")
        source = source_from_description(self._description)
        if tuple(source.image_size) != self._image_size:
            raise InputError("the data set's images no longer have the model's size")
        return source
