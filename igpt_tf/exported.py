"""A SavedModel of ours as a folder: where it lies and what it says, read without TensorFlow."""

import json
import os

from igpt_tf.errors import InputError

GRAPH = "saved_model.pb"
METADATA = os.path.join("assets", "metadata.json")
PALETTE = os.path.join("assets", "palette.npy")


def find(path: str) -> str:
    """The SavedModel's folder: `path`, or its highest numbered subfolder. Raises: InputError."""
    if not os.path.isdir(path):
        raise InputError(f"the SavedModel's folder does not exist. Received: path={path}")
    if os.path.isfile(os.path.join(path, GRAPH)):
        return path
    versions = [
        name
        for name in os.listdir(path)
        if name.isdigit() and os.path.isfile(os.path.join(path, name, GRAPH))
    ]
    if not versions:
        raise InputError(
            "the folder holds no SavedModel, neither itself nor in numbered folders. "
            f"Received: path={path}"
        )
    return os.path.join(path, max(versions, key=int))


def read_metadata(path: str) -> dict:
    """The content of the folder's metadata.json. Raises: InputError."""
    try:
        with open(os.path.join(path, METADATA), encoding="utf-8") as file:
            metadata = json.load(file)
        metadata["model"]["image_size"]
    except FileNotFoundError:
        raise InputError(
            f"the SavedModel is not one of igpt_tf's: it lacks {METADATA}. Received: path={path}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"the SavedModel's {METADATA} is damaged ({said}). Received: path={path}"
        ) from None
    return metadata
