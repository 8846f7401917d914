"""Where the page's answers come from: a SavedModel in this process, or a model server."""

import threading
from typing import Protocol

import numpy as np

from igpt_tf.errors import InputError
from igpt_tf.serving.client import Transport, named


class Backend(Protocol):
    """A model that answers by signature.

    Attributes:
        where: For people: which model this is.
        metadata: Of the SavedModel, or {} where it is not at hand.
        signature_names: What it answers.
        image_size: (H, W).
    """

    where: str
    metadata: dict
    signature_names: list[str]
    image_size: tuple[int, int]

    def ask(self, name: str, **inputs) -> dict[str, np.ndarray]:
        """The answer of a signature. Raises: InputError: it refuses, or there is none."""


class Local:
    """A SavedModel in this process; one question at a time, so that memory stays bounded.

    Args:
        path: As for `export.load.SavedModel`.

    Raises:
        InputError: It is not there, or damaged.
    """

    def __init__(self, path: str):
        from igpt_tf.savedmodel.load import SavedModel  # with all of TensorFlow behind it

        self._model, self._lock = SavedModel(path), threading.Lock()
        self.where, self.metadata = self._model.path, self._model.metadata
        self.image_size = self._model.image_size
        self.signature_names = self._model.signature_names

    def ask(self, name: str, **inputs) -> dict[str, np.ndarray]:
        """See `Backend`."""
        with self._lock:
            return self._model.signature(name)(**inputs)


class Served:
    """A model behind TensorFlow Serving.

    Args:
        transport: To it.
        where: The server's address.
        metadata: Of the SavedModel that is served, if it is at hand.

    Raises:
        InputError: The server does not answer, or its model is not one of ours.
    """

    def __init__(self, transport: Transport, where: str, metadata: dict | None = None):
        self._transport, self._signatures = transport, transport.signatures()
        self.where, self.metadata = f"the server at {where}", metadata or {}
        self.signature_names = list(self._signatures)
        try:
            _, height, width, _ = self._signatures["encode"].inputs["images"].shape
        except (KeyError, TypeError, ValueError):
            raise InputError(f"the served model is not one of ours. Received: {where=}") from None
        self.image_size = height, width

    def ask(self, name: str, **inputs) -> dict[str, np.ndarray]:
        """See `Backend`."""
        signature = named(self._signatures, name)
        arrays = {
            key: np.asarray(value, signature.inputs[key].dtype) for key, value in inputs.items()
        }
        return self._transport.predict(name, signature, arrays)
