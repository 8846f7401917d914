"""A SavedModel of ours as a folder: where it lies and what it says, read without TensorFlow."""

import json
import math
import os
from collections.abc import Callable
from typing import NamedTuple

from igpt_tf.errors import InputError

GRAPH = "saved_model.pb"
METADATA = os.path.join("assets", "metadata.json")
PALETTE = os.path.join("assets", "palette.npy")


class _Rule(NamedTuple):
    """What a field of metadata.json must be, in words and as a test; whether it may be missing."""

    words: str
    admits: Callable[[object], bool]
    optional: bool = False


def _is_object(value) -> bool:
    return isinstance(value, dict)


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_whole(value, least: int = 1) -> bool:
    return type(value) is int and value >= least  # True is an int too, but no number


def _is_image_size(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_texts(value) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_SIZE = _Rule("a whole number above 0", _is_whole)
_MODEL = {
    "image_size": _Rule("two whole numbers above 0", _is_image_size),
    "vocabulary_size": _SIZE,
    "num_layers": _SIZE,
    "hidden_dim": _SIZE,
    "num_heads": _SIZE,
    "causal": _Rule("true or false", lambda value: isinstance(value, bool)),
}
# By name, "a.b" being field b of the object a; an object's own rule comes before its fields'.
_RULES = {
    "model": _Rule("an object", _is_object),
    **{f"model.{name}": rule for name, rule in _MODEL.items()},
    "objective": _Rule("an object", _is_object),
    "objective.name": _Rule("a text", _is_text, optional=True),
    "step": _Rule("a whole number, 0 or more", lambda value: _is_whole(value, 0)),
    "nats_per_token": _Rule("a number", _is_number, optional=True),
    "data": _Rule("an object", _is_object, optional=True),
    "data.name": _Rule("a text", _is_text),
    "data.arguments": _Rule("an object", _is_object, optional=True),
    "class_names": _Rule("a list of texts", _are_texts, optional=True),
    "task": _Rule("an object", _is_object, optional=True),  # the oldest exports lack it
    "task.num_classes": _SIZE,
}


def find(path: str) -> str:
    """The SavedModel's folder: `path`, or its highest numbered subfolder. Raises: InputError."""
    if not os.path.isdir(path):
        raise InputError(f"the SavedModel's folder does not exist. Received: path={path}")
    if os.path.isfile(os.path.join(path, GRAPH)):
        return path
    versions = [
        name
        for name in os.listdir(path)
        if name.isdecimal() and os.path.isfile(os.path.join(path, name, GRAPH))
    ]
    if not versions:
        raise InputError(
            "the folder holds no SavedModel, neither itself nor in numbered folders. "
            f"Received: path={path}"
        )
    return os.path.join(path, max(versions, key=int))


def read_metadata(path: str) -> dict:
    """The content of the folder's metadata.json, every field that a program reads being sound.

    Raises:
        InputError: The file is missing or damaged; names the first field that is wrong.
    """
    try:
        with open(os.path.join(path, METADATA), encoding="utf-8") as file:
            metadata = json.load(file)
    except FileNotFoundError:
        raise InputError(
            f"the SavedModel is not one of igpt_tf's: it lacks {METADATA}. Received: path={path}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    problem = _problem(metadata)
    if problem:
        raise _damaged(path, problem)
    return metadata


def _damaged(path: str, said: str) -> InputError:
    return InputError(
        f"the SavedModel's {METADATA} is damaged ({' '.join(said.split())}); export it again. "
        f"Received: path={path}"
    )


def _problem(metadata) -> str | None:
    """What is wrong with the first field that is, in words."""
    if not _is_object(metadata):
        return "it is not an object"
    for name, rule in _RULES.items():
        *holder, key = name.split(".")
        fields = metadata.get(holder[0]) if holder else metadata
        if fields is None:  # an optional object
            continue
        value = fields.get(key)
        if not (rule.optional if value is None else rule.admits(value)):
            found = f"{json.dumps(value):.60}" if key in fields else "missing"
            return f"{name} is {found}; it must be {rule.words}"
    unknown = sorted(metadata["model"].keys() - _MODEL.keys())
    return f"this version does not know the field model.{unknown[0]}" if unknown else None
