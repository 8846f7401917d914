"""A SavedModel's folder and its `assets/metadata.json`: written, found, read and validated.

Reading does not import TensorFlow.
"""

import os
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from igpt_tf import files, runtime
from igpt_tf.errors import InputError
from igpt_tf.savedmodel import shipped

GRAPH = "saved_model.pb"
METADATA = os.path.join("assets", "metadata.json")
PALETTE = os.path.join("assets", "palette.npy")

_Size = Annotated[int, Meta(ge=1, le=2**24)]
_NonEmpty = Annotated[str, Meta(min_length=1)]


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of `ImageGPT`."""

    image_size: Annotated[list[_Size], Meta(min_length=2, max_length=2)]
    vocabulary_size: _Size
    num_layers: Annotated[int, Meta(ge=1, le=2**10)]
    hidden_dim: _Size
    num_heads: _Size
    causal: bool


class _Named(msgspec.Struct):
    """Objective, with the arguments of its `get_config()` beside the name."""

    name: _NonEmpty


class _Data(msgspec.Struct):
    """Source of the images.

    `fingerprint` identifies the images themselves; `module` is the Python module that registers the
    source, to be imported before a user's own source is built again.
    """

    name: _NonEmpty
    arguments: dict[str, Any] = {}
    fingerprint: str | None = None
    module: str | None = None


class _InitialModel(msgspec.Struct):
    """The pretrained model that training started from: its folder and its own step."""

    path: _NonEmpty
    step: Annotated[int, Meta(ge=0, le=2**53)]


class _Task(msgspec.Struct):
    """What a fine-tuned model does, with the settings of its fine-tuning."""

    name: _NonEmpty
    num_classes: _Size
    num_masks: Annotated[int, Meta(ge=0)] = 0


class _Metadata(msgspec.Struct):
    """Schema of metadata.json. Fields that it does not name are kept.

    Attributes:
        model: `ImageGPT.architecture`.
        palette: Fingerprint of the palette.
        objective: `Objective.get_config()` of the pretraining objective.
        score: What `score` measures, "likelihood" or "pseudo-likelihood".
        completion: How `complete` generates pixels, "raster order" or "in-painting".
        step: Number of optimizer steps.
        initial_model: The model that training started from; None for random weights.
        data: The images that the model was trained on, if they are known.
        task: What a fine-tuned model does; None for a pretrained model.
        class_names: Name of each class, if the data have labels.
        nats_per_token: Held-out loss of the objective, if it was measured. For a masked model this
            is the loss per hidden token, which differs from its `score`.
        signatures: Names of the signatures.
        versions: Package -> version that wrote the SavedModel.
    """

    model: _Model
    palette: str
    objective: _Named
    score: _NonEmpty
    completion: _NonEmpty
    step: Annotated[int, Meta(ge=0, le=2**53)]
    initial_model: _InitialModel | None = None
    data: _Data | None = None
    task: _Task | None = None
    class_names: list[str] | None = None
    nats_per_token: float | None = None
    signatures: list[str] = []
    versions: dict[str, str] = {}


def make_metadata(
    model,
    palette,
    objective,
    *,
    data: dict | None,
    class_names=None,
    step: int = 0,
    nats_per_token: float | None = None,
    task: dict | None = None,
    initial_model: dict | None = None,
) -> dict:
    """Content of metadata.json; see `write.write_pretrained` for the arguments.

    Args:
        objective: An `Objective`.
        task: {"name": "classification", "num_classes", "num_masks", ...}, or None.
        initial_model: {"path", "step"}, or None.

    Raises:
        InputError: A field has a wrong type or is out of range.
    """
    content = {
        "model": model.architecture,
        "palette": palette.fingerprint,
        "objective": objective.get_config(),
        "score": objective.score_kind,
        "completion": objective.generation,
        "step": int(step),
        "initial_model": initial_model,
        "data": data,
        "task": task,
        "class_names": None if class_names is None else list(class_names),
        "nats_per_token": None if nats_per_token is None else float(nats_per_token),
        "versions": runtime.versions(),
    }
    try:
        return _validated(content)
    except msgspec.ValidationError as error:
        raise InputError(f"the description of the model is wrong: {error}") from None


def write_metadata(folder: str, metadata: dict, palette) -> None:
    """Writes metadata.json and palette.npy into a SavedModel's folder."""
    files.write_json(os.path.join(folder, METADATA), metadata)
    palette.save(os.path.join(folder, PALETTE))


def find(path: str) -> str:
    """Finds a SavedModel's own folder.

    Args:
        path: That folder; the folder of its numbered versions, of which the highest counts; or,
            if no such folder exists, the name of a model that comes with the package
            (`shipped.MODELS`).

    Raises:
        InputError: There is no SavedModel.
    """
    if not os.path.isdir(path):
        if path in shipped.MODELS:
            return shipped.export(path)
        raise InputError(
            "the SavedModel's folder does not exist, and no pretrained model of the package has "
            f"this name (there is {', '.join(shipped.MODELS)}). Received: path={path}"
        )
    if os.path.isfile(os.path.join(path, GRAPH)):
        return path
    try:
        names = os.listdir(path)
    except OSError as error:
        raise InputError(
            f"the SavedModel's folder cannot be read ({error.strerror}). Received: path={path}"
        ) from None
    versions = [
        name
        for name in names
        if name.isdecimal() and os.path.isfile(os.path.join(path, name, GRAPH))
    ]
    if not versions:
        hint = "; that of a run is its folder export/" if "export" in names else ""
        raise InputError(
            f"the folder holds no SavedModel, neither itself nor in numbered folders{hint}. "
            f"Received: path={path}"
        )
    return os.path.join(path, max(versions, key=int))


def read_metadata(folder: str) -> dict:
    """Reads and validates metadata.json. Optional fields that it lacks get their defaults.

    Args:
        folder: The SavedModel's own folder.

    Raises:
        InputError: The file is missing, damaged, or one of its fields is wrong.
    """
    path = os.path.join(folder, METADATA)
    if not os.path.exists(path):
        raise InputError(
            f"the SavedModel was not written by igpt_tf: it lacks {METADATA}. "
            f"Received: path={folder}"
        )
    content = files.read_json(
        path, description="the SavedModel's metadata", fix="export it again", schema=dict[str, Any]
    )
    try:
        return _validated(content)
    except msgspec.ValidationError as error:
        raise InputError(
            f"the SavedModel's metadata is damaged ({error}); export it again. Received: {path}"
        ) from None


def _validated(content: dict) -> dict:
    """`content` with the defaults of missing fields. Raises: msgspec.ValidationError."""
    return msgspec.to_builtins(msgspec.convert(content, _Metadata)) | content
