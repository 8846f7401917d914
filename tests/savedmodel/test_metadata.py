"""Claims about a SavedModel's own words: what programs read in them is checked once."""

import json

import pytest

from igpt_tf.errors import InputError
from igpt_tf.savedmodel.metadata import read_metadata

MODEL = {
    "image_size": [8, 8],
    "vocabulary_size": 16,
    "num_layers": 2,
    "hidden_dim": 8,
    "num_heads": 2,
    "causal": True,
}
SOUND = {
    "model": MODEL,
    "objective": {"name": "autoregressive"},
    "data": {"name": "digits", "arguments": {}},
    "class_names": ["zero", "one"],
    "step": 5,
    "nats_per_token": 1.25,
    "task": None,
}


def _read(folder, content):
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / "metadata.json").write_text(json.dumps(content))
    return read_metadata(str(folder))


def _without(fields, name):
    return {key: value for key, value in fields.items() if key != name}


def test_sound_metadata_are_read_as_they_are(tmp_path):
    assert _read(tmp_path, SOUND) == SOUND
    spare = {"model": MODEL, "objective": {}, "step": 0, "data": None, "nats_per_token": None}
    assert _read(tmp_path, spare) == spare
    tuned = SOUND | {"task": {"name": "classification", "num_classes": 2}}
    assert _read(tmp_path, tuned) == tuned


@pytest.mark.parametrize("name", ["model", "objective", "step"])
def test_a_missing_field_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"{name} is missing; it must be"):
        _read(tmp_path, _without(SOUND, name))


@pytest.mark.parametrize("name", MODEL)
def test_a_missing_field_of_the_model_is_named(tmp_path, name):
    with pytest.raises(InputError, match=rf"model\.{name} is missing; it must be"):
        _read(tmp_path, SOUND | {"model": _without(MODEL, name)})


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"model": []}, "model is "),
        ({"model": MODEL | {"image_size": [8]}}, "model.image_size is [8]; it must be two"),
        ({"model": MODEL | {"image_size": [8, 0]}}, "model.image_size is [8, 0]"),
        ({"model": MODEL | {"image_size": 8}}, "model.image_size is 8"),
        ({"model": MODEL | {"num_layers": True}}, "model.num_layers is true"),
        ({"model": MODEL | {"hidden_dim": "8"}}, 'model.hidden_dim is "8"'),
        ({"model": MODEL | {"causal": 1}}, "model.causal is 1"),
        ({"model": MODEL | {"dropout": 0.1}}, "model.dropout"),
        ({"objective": None}, "objective is null"),
        ({"objective": "masked"}, 'objective is "masked"'),
        ({"objective": {"name": []}}, "objective.name is []"),
        ({"step": -1}, "step is -1"),
        ({"step": 1.5}, "step is 1.5"),
        ({"nats_per_token": float("nan")}, "nats_per_token is NaN"),
        ({"data": "digits"}, 'data is "digits"; it must be an object'),
        ({"data": {"arguments": {}}}, "data.name is missing"),
        ({"data": {"name": "digits", "arguments": []}}, "data.arguments is []"),
        ({"class_names": "ab"}, 'class_names is "ab"'),
        ({"class_names": [1]}, "class_names is [1]"),
        ({"task": True}, "task is true"),
        ({"task": {}}, "task.num_classes is missing"),
        ({"task": {"num_classes": 10**99}, "step": "x" * 999}, 'step is "xxx'),
    ],
)
def test_a_wrong_field_is_named_with_the_file_in_one_short_line(tmp_path, wrong, named):
    with pytest.raises(InputError) as refusal:
        _read(tmp_path, SOUND | wrong)
    said = str(refusal.value)
    assert named in said and "assets/metadata.json" in said and f"path={tmp_path}" in said
    assert "\n" not in said and len(said) < 250 + len(str(tmp_path))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b'"text"', b"[" * 100_000])
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "metadata.json").write_bytes(content)
    with pytest.raises(InputError, match="damaged.*export it again") as refusal:
        read_metadata(str(tmp_path))
    assert "\n" not in str(refusal.value)
