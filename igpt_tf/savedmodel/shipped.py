"""Pretrained models that come with the package, by name: `--saved_model=digits`.

The package holds the weights, the palette and the metadata of each (`pretrained/NAME/`). When a
name is first used, a SavedModel is written from them into a cache folder: `~/.cache/igpt_tf`, or
the value of the environment variable `IGPT_CACHE`.
"""

import hashlib
import os
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from igpt_tf import files, runtime
from igpt_tf.errors import InputError
from igpt_tf.palette import Palette

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
MODELS = {"digits": _PACKAGE / "pretrained" / "digits"}  # name -> folder of its files

_WEIGHTS, _METADATA = "weights.safetensors", "metadata.json"
_PALETTE = "palette"  # its tensor beside the weights
# Fields of a SavedModel's metadata that are stored; writing the SavedModel gives the others.
_STORED = ("model", "objective", "data", "class_names", "step", "nats_per_token")
# Code that decides what a SavedModel does. After a change of it the SavedModel is written again.
_CODE = ("model", "sampling", "savedmodel", "data/decoding.py", "objectives.py", "palette.py")


def export(name: str) -> str:
    """Returns the folder of a model's SavedModel in the cache; writes it when it is missing.

    Args:
        name: One of `MODELS`.

    Raises:
        InputError: The cache folder cannot be written.
    """
    folder = MODELS[name]
    cache = _cache_folder(name)
    path = os.path.join(cache, _fingerprint(folder))
    if os.path.isdir(path):
        return path
    try:
        os.makedirs(cache, exist_ok=True)
        # Programs that start together each write a folder of their own; the first rename counts.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as temporary:
            written = _write_saved_model(folder, os.path.join(temporary, "1"))
            try:
                os.rename(written, path)
            except OSError:
                if not os.path.isdir(path):
                    raise
    except OSError as error:
        raise InputError(
            f"the SavedModel of a pretrained model cannot be written ({error.strerror}); set "
            f"IGPT_CACHE to another folder. Received: name={name}, cache={cache}"
        ) from None
    files.sync_folder(cache)
    return path


def name_of(path: str) -> str | None:
    """Returns the name of the model whose SavedModel, from the cache, lies there, or None."""
    folder = os.path.dirname(os.path.abspath(path))
    return next((name for name in MODELS if folder == _cache_folder(name)), None)


def store(path: str, folder: str) -> None:
    """Stores a pretrained SavedModel as one of the package's models.

    Args:
        path: As for `load.SavedModel`.
        folder: The folder to write, one of `MODELS`. Its README.md is written by hand.

    Example:
        store("runs/digits/export", "igpt_tf/pretrained/digits")
    """
    from igpt_tf.savedmodel.load import load_model
    from igpt_tf.savedmodel.write import weight_name

    model, palette, metadata = load_model(path)
    tensors = {weight_name(weight): weight.numpy() for weight in model.weights}
    with files.atomic_write(os.path.join(folder, _WEIGHTS)) as file:
        file.write(save({**tensors, _PALETTE: palette.centroids}))
    stored = {field: metadata[field] for field in _STORED}
    files.write_json(os.path.join(folder, _METADATA), stored)


def _cache_folder(name: str) -> str:
    cache = os.path.expanduser(os.environ.get("IGPT_CACHE") or os.path.join("~", ".cache/igpt_tf"))
    return os.path.abspath(os.path.join(cache, name))


def _write_saved_model(folder: pathlib.Path, path: str) -> str:
    if "tensorflow" not in sys.modules:
        runtime.import_tensorflow()
    from igpt_tf.model import ImageGPT
    from igpt_tf.savedmodel.write import weight_name, write_pretrained

    metadata = files.read_json(
        str(folder / _METADATA),
        description="the metadata of a pretrained model",
        fix="install the package again",
        schema=dict[str, Any],
    )
    tensors = load_file(folder / _WEIGHTS)
    model = ImageGPT(**metadata.pop("model"), dtype="float32")
    for weight in model.weights:
        weight.assign(tensors[weight_name(weight)])
    return write_pretrained(model, Palette(np.array(tensors[_PALETTE])), path, **metadata)


def _fingerprint(folder: pathlib.Path) -> str:
    """Hex digest of the model's files and of the code that its SavedModel consists of."""
    digest = hashlib.sha256()
    paths = [folder / _WEIGHTS, folder / _METADATA]
    for code in _CODE:
        path = _PACKAGE / code
        paths += sorted(path.glob("*.py")) if path.is_dir() else [path]
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
