"""Weights in a SavedModel: under which names they lie, and back out again."""

import os

import numpy as np
import tensorflow as tf

from igpt_tf.errors import InputError


def name_of(variable) -> str:
    """A weight's name inside its model, e.g. `block_0/attention/qkv_kernel`."""
    return variable.path.split("/", 1)[1]


def read(path: str, model) -> None:
    """Assigns every weight of `model` from the SavedModel in the folder `path`, one at a time.

    Raises:
        InputError: The weights are unreadable, or one is missing or of another shape.
    """
    reader = _open(path)
    for weight in model.weights:
        name = name_of(weight)
        value = _read(reader, name, path)
        if value.shape != tuple(weight.shape):
            raise InputError(
                f"the weight {name} has not the shape {tuple(weight.shape)} of the metadata's "
                f"model. Received: shape={value.shape}, path={path}"
            )
        weight.assign(value)


def _open(path: str):
    try:
        return tf.train.load_checkpoint(os.path.join(path, "variables", "variables"))
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"the SavedModel's weights cannot be read ({type(error).__name__}); export it again. "
            f"Received: path={path}"
        ) from None


def _read(reader, name: str, path: str) -> np.ndarray:
    key = f"weights/{name.replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"
    if not reader.has_tensor(key):
        raise InputError(f"the SavedModel lacks the weight {name}. Received: path={path}")
    try:
        return reader.get_tensor(key)
    except (RuntimeError, IndexError, tf.errors.OpError):
        raise InputError(
            f"the SavedModel's weight {name} is damaged; export it again. Received: path={path}"
        ) from None
