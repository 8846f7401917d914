"""metadata.json: written and read by one schema, which rejects every wrong field in one line."""

import contextlib
import json
import os

import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.savedmodel.metadata import read_metadata

MODEL = {
    "image_size": [8, 8],
    "vocabulary_size": 16,
    "num_layers": 2,
    "hidden_dim": 8,
    "num_heads": 2,
    "causal": True,
}
COMPLETE = {
    "model": MODEL,
    "palette": "12ab",
    "objective": {"name": "masked", "probability": 0.15},
    "score": "likelihood",
    "completion": "raster order",
    "data": {
        "name": "digits",
        "arguments": {"heldout": 0.2},
        "fingerprint": "34cd",
        "module": "my_source",
    },
    "initial_model": {"path": "runs/imagenet/export", "step": 7},
    "class_names": ["zero", "one"],
    "step": 5,
    "nats_per_token": 1.25,
    "task": {"name": "classification", "num_classes": 2, "learning_rate": 0.1},
    "signatures": ["encode"],
    "versions": {"keras": "3"},
}
REQUIRED = ("model", "palette", "objective", "score", "completion", "step")


def _read(folder, content):
    (folder / "assets").mkdir(exist_ok=True)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "assets" / "metadata.json").write_bytes(text)
    return read_metadata(str(folder))


def _without(fields, name):
    return {key: value for key, value in fields.items() if key != name}


def test_metadata_names_the_origin_of_the_model(autoregressive):
    with open(os.path.join(autoregressive.path, "assets", "metadata.json")) as file:
        metadata = json.load(file)
    assert metadata == autoregressive.saved.metadata
    assert ImageGPT(**metadata["model"]).architecture == autoregressive.model.architecture
    assert metadata["palette"] == autoregressive.palette.fingerprint
    assert metadata["objective"] == {"name": "autoregressive"}
    assert metadata["data"] == {
        "name": "digits",
        "arguments": {"heldout": 0.2},
        "fingerprint": "12ab",
    }
    assert metadata["class_names"] == ["zero", "one"]
    assert (metadata["step"], metadata["nats_per_token"], metadata["task"]) == (70, 1.25, None)
    assert metadata["versions"].keys() == {"igpt_tf", "tensorflow", "keras", "python"}


def test_valid_metadata_is_read_unchanged(tmp_path):
    assert _read(tmp_path, COMPLETE) == COMPLETE
    assert _read(tmp_path, COMPLETE | {"later": 1})["later"] == 1


def test_missing_optional_fields_get_their_defaults(tmp_path):
    required = {name: COMPLETE[name] for name in REQUIRED}
    names = ("data", "task", "class_names", "nats_per_token", "initial_model")
    optional = dict.fromkeys(names)
    assert _read(tmp_path, required) == required | optional | {"signatures": [], "versions": {}}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"missing required field `{name}`"):
        _read(tmp_path, _without(COMPLETE, name))


@pytest.mark.parametrize("name", MODEL)
def test_a_missing_field_of_the_model_is_named(tmp_path, name):
    with pytest.raises(InputError, match=rf"missing required field `{name}` - at `\$\.model`"):
        _read(tmp_path, COMPLETE | {"model": _without(MODEL, name)})


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"model": []}, "$.model`"),
        ({"model": MODEL | {"image_size": [8]}}, "$.model.image_size`"),
        ({"model": MODEL | {"image_size": [8, 0]}}, "$.model.image_size[1]`"),
        ({"model": MODEL | {"image_size": 8}}, "$.model.image_size`"),
        ({"model": MODEL | {"image_size": None}}, "$.model.image_size`"),
        ({"model": MODEL | {"num_layers": True}}, "$.model.num_layers`"),
        ({"model": MODEL | {"num_layers": 10**6}}, "$.model.num_layers`"),
        ({"model": MODEL | {"hidden_dim": "8"}}, "$.model.hidden_dim`"),
        ({"model": MODEL | {"hidden_dim": 10**18}}, "$.model.hidden_dim`"),
        ({"model": MODEL | {"causal": 1}}, "$.model.causal`"),
        ({"model": MODEL | {"dropout": 0.1}}, "unknown field `dropout`"),
        ({"palette": None}, "$.palette`"),
        ({"objective": None}, "$.objective`"),
        ({"objective": "masked"}, "$.objective`"),
        ({"objective": {"name": []}}, "$.objective.name`"),
        ({"score": ""}, "$.score`"),
        ({"completion": 1}, "$.completion`"),
        ({"step": -1}, "$.step`"),
        ({"step": 1.5}, "$.step`"),
        ({"step": 10**99}, "$"),
        ({"nats_per_token": float("nan")}, "malformed"),
        ({"nats_per_token": "1"}, "$.nats_per_token`"),
        ({"data": "digits"}, "$.data`"),
        ({"data": {"arguments": {}}}, "missing required field `name` - at `$.data`"),
        ({"data": {"name": "digits", "arguments": []}}, "$.data.arguments`"),
        ({"data": {"name": "digits", "module": ["os"]}}, "$.data.module`"),
        ({"data": {"name": "digits", "fingerprint": 3}}, "$.data.fingerprint`"),
        ({"initial_model": "runs/imagenet"}, "$.initial_model`"),
        ({"initial_model": {"path": "runs", "step": -1}}, "$.initial_model.step`"),
        ({"class_names": "ab"}, "$.class_names`"),
        ({"class_names": [1]}, "$.class_names[0]`"),
        ({"task": True}, "$.task`"),
        ({"task": {"name": "classification"}}, "missing required field `num_classes`"),
        ({"task": {"name": "classification", "num_classes": 10**99}}, "$"),
    ],
)
def test_a_wrong_field_is_named_with_the_file_in_one_short_line(tmp_path, wrong, named):
    with pytest.raises(InputError) as caught:
        _read(tmp_path, COMPLETE | wrong)
    message = str(caught.value)
    assert named in message and str(tmp_path / "assets" / "metadata.json") in message
    assert "export it again" in message
    assert "\n" not in message and len(message) < 250 + len(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"[" * 100_000,
        b'{"model":' * 100_000,
        b"1" * 10_000,
        json.dumps(COMPLETE).replace('"step": 5', '"step": 5, "step": 6').encode(),
        json.dumps(COMPLETE).replace('"num_heads": 2', '"num_heads": 2, "num_heads": 4').encode(),
    ],
)
def test_a_file_that_is_no_json_object_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(InputError, match="metadata cannot be read.*export it again") as caught:
        _read(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_mutated_files_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    content = np.frombuffer(json.dumps(COMPLETE).encode(), "uint8")
    pieces = [b"null", b"[]", b"{}", b"-1", b"1e999", b"9" * 400, b'"', b"\\ud800", b"\xff"]
    for _ in range(300):
        start, end = np.sort(rng.integers(0, len(content), 2))
        end = min(end, start + 12)
        mutated = content[:start].tobytes() + rng.choice(pieces) + content[end:].tobytes()
        with contextlib.suppress(InputError):
            _read(tmp_path, mutated)
