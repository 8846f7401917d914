"""Pretrained models by name: `--saved_model=digits`.

Each model is a folder with the weights and the palette (`model.safetensors`), the metadata and a
model card. Small ones are in the package, larger ones in `models/` of the repository only. When a
name is first used, a SavedModel is written from these files into a cache folder:
`~/.cache/igpt_tf`, or the value of the environment variable `IGPT_CACHE`.
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
MODELS = {  # name -> folder of its files
    "digits": _PACKAGE / "pretrained" / "digits",
    "cifar10": _PACKAGE.parent / "models" / "cifar10",
}

_WEIGHTS, _METADATA = "model.safetensors", "metadata.json"
_PALETTE = "palette"  # its tensor beside the weights
# Fields of a SavedModel's metadata that are stored; writing the SavedModel gives the others.
_STORED = ("model", "objective", "data", "class_names", "step", "nats_per_token")
_RANDOM_TOKENS = "random_tokens_nats"  # see `random_tokens_nats`
_MAX_CHANGE = 5e-4  # of the loss by half precision, in nats per token
_NUM_IMAGES = 1000  # held-out images at most on which that is measured
# Code that decides what a SavedModel does. After a change of it the SavedModel is written again.
_CODE = ("model", "sampling", "savedmodel", "data/decoding.py", "objectives.py", "palette.py")


def export(name: str) -> str:
    """Returns the folder of a model's SavedModel in the cache; writes it when it is missing.

    Args:
        name: One of `MODELS`.

    Raises:
        InputError: The model is not in the installed package, or the cache folder cannot be
            written.
    """
    folder = MODELS[name]
    if not (folder / _WEIGHTS).exists():
        raise InputError(
            "this model is not in the installed package, but in the folder models/ of the "
            "repository: clone it, install it with `pip install -e .` and start the command again. "
            f"Received: {name}, searched in {folder}"
        )
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


def store(path: str, folder: str) -> str:
    """Stores a pretrained SavedModel as one of the named models, its weights in half precision.

    The model's data must be present: the loss of at most 1,000 held-out images is measured before
    and after the rounding. It is stored, too, if the SavedModel has none.

    Args:
        path: As for `load.SavedModel`.
        folder: The folder to write, one of `MODELS`. Its README.md is written by hand.

    Returns:
        What was stored and measured, in one line.

    Raises:
        InputError: Half precision changes the loss by more than 0.0005 nats per token, or the
            data are missing or named by an absolute path, which other machines do not have.

    Example:
        store("runs/digits/export", "igpt_tf/pretrained/digits")
    """
    from igpt_tf.data import source_from_description
    from igpt_tf.objectives import objective_from_config
    from igpt_tf.savedmodel.load import load_model
    from igpt_tf.savedmodel.write import weight_name

    model, palette, metadata = load_model(path)
    objective = objective_from_config(metadata["objective"])
    for argument, value in metadata["data"]["arguments"].items():
        if isinstance(value, str) and os.path.isabs(value):
            raise InputError(
                "the data of a named model are named by a relative path, such as data/cifar10; "
                f"train with one. Received: {argument}={value}"
            )
    source = source_from_description(metadata["data"])
    images = source.valid.arrays()[0]  # sorted by class in many data sets
    tokens = palette.encode(images[:: -(-len(images) // _NUM_IMAGES)])
    before = mean_nats(model, objective, tokens)
    tensors = {}
    for weight in model.weights:
        tensors[weight_name(weight)] = weight.numpy().astype("float16")
        weight.assign(tensors[weight_name(weight)])
    after = mean_nats(model, objective, tokens)
    if not abs(after - before) <= _MAX_CHANGE:
        raise InputError(
            f"half precision changes the loss by more than {_MAX_CHANGE} nats per token. "
            f"Received: {before:.5f} before, {after:.5f} after, saved_model={path}"
        )
    content = save({**tensors, _PALETTE: palette.centroids})
    with files.atomic_write(os.path.join(folder, _WEIGHTS)) as file:
        file.write(content)
    stored = {field: metadata[field] for field in _STORED}
    stored["data"] = {**metadata["data"], "fingerprint": source.fingerprint()}
    if stored["nats_per_token"] is None and objective.score_kind == "likelihood":
        stored["nats_per_token"] = after
    stored[_RANDOM_TOKENS] = random_tokens_nats(model, objective)
    files.write_json(os.path.join(folder, _METADATA), stored)
    return (
        f"{folder}: {model.count_params():,} weights in {len(content) / 1e6:.1f} MB; score of "
        f"{len(tokens):,} held-out images {before:.5f} nats per token, {after:.5f} when rounded"
    )


def mean_nats(model, objective, tokens: np.ndarray) -> float:
    """Mean of an objective's token scores in nats. tokens: int32[N,T]."""
    starts = range(0, len(tokens), 100)
    nats = [objective.token_scores(model, tokens[start : start + 100]) for start in starts]
    return float(np.concatenate(nats).mean())


def random_tokens_nats(model, objective) -> float:
    """`mean_nats` of fixed random tokens: tests the weights where the data are missing."""
    shape = (4, model.sequence_length)
    tokens = np.random.RandomState(0).randint(0, model.vocabulary_size, shape).astype("int32")
    return mean_nats(model, objective, tokens)


def _cache_folder(name: str) -> str:
    cache = os.path.expanduser(os.environ.get("IGPT_CACHE") or os.path.join("~", ".cache/igpt_tf"))
    return os.path.abspath(os.path.join(cache, name))


def _write_saved_model(folder: pathlib.Path, path: str) -> str:
    if "tensorflow" not in sys.modules:
        runtime.import_tensorflow()
        # `tools.finetune` sets this later, which is an error once operations have run.
        runtime.use_one_thread_per_op()
    from igpt_tf.model import ImageGPT
    from igpt_tf.savedmodel.write import weight_name, write_pretrained

    metadata = files.read_json(
        str(folder / _METADATA),
        description="the metadata of a pretrained model",
        fix="install the package again",
        schema=dict[str, Any],
    )
    del metadata[_RANDOM_TOKENS]
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
