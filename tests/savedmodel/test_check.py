"""Claims about the serving check: sound models pass, each kind of breach is named, in one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.savedmodel import signatures, warmup
from igpt_tf.savedmodel.check import Check
from igpt_tf.savedmodel.describe import describe
from igpt_tf.savedmodel.warmup_reader import read as read_warmup
from igpt_tf.savedmodel.write import write_folder
from tests.serving import exported


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("causal") / "5")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("masked") / "5", causal=False)


def _report(path):
    check = Check(str(path))
    try:
        return check.run()
    finally:
        check.close()


def _problems(path):
    return " | ".join(_report(path)["problems"])


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_exports_of_both_objectives_keep_the_contract(objective, request):
    report = _report(request.getfixturevalue(objective))
    assert report["problems"] == []
    names = {row["name"] for row in report["signatures"]}
    assert ("sample" in names) == (report["kind"] == "autoregressive")
    assert ("inpaint" in names) == (report["kind"] == "masked")
    assert all(min(row["milliseconds"]) > 0 for row in report["signatures"])
    assert report["num_warmup_records"] == len(names)


def _signature(function, *specs):
    return tf.function(function, input_signature=specs, autograph=False)


def _write_with(path, change, causal=True):
    """Exports a model with the signatures that `change(model, palette, signatures)` returns."""
    model, palette = exported.live(causal)
    functions = change(model, palette, signatures.pretrained(model, palette))
    about = {"objective": {}, "data": None, "class_names": None, "step": 0, "nats_per_token": None}
    return write_folder(str(path), model, functions, describe(model, palette, **about), palette)


def test_a_fine_tuned_model_classifies_by_default(tmp_path):
    report = _report(exported.write_classifier(tmp_path / "1", causal=False))
    assert report["problems"] == []
    assert report["kind"] == "masked, fine-tuned"
    rows = {row["name"]: row for row in report["signatures"]}
    assert rows["classify_bytes"]["outputs"] == rows["classify"]["outputs"]
    assert rows["serving_default"]["outputs"] == rows["classify"]["outputs"]
    assert rows["classify"]["outputs"]["probabilities"] == "float32[B,3]"


def _break(model, palette, sound):
    """Something wrong with every signature of a masked model."""
    images = signatures.images_of(model)
    number = tf.TensorSpec([], tf.int32, "seed")
    compiled = tf.function(lambda tokens: tokens + 0, jit_compile=True)

    def draw(images, num_given, seed, temperature, top_k, top_p):
        tokens = tf.random.uniform([tf.shape(images)[0], 24], 0, 12, tf.int32)
        return {"images": images, "tokens": tokens}

    def count(image_bytes):
        features = sound["features_bytes"](image_bytes)["features"]
        return {"features": features * tf.cast(tf.size(image_bytes), tf.float32)}

    return {
        "sample": _signature(lambda seed: {"images": seed}, number),
        "encode": _signature(
            lambda images: {"codes": compiled(sound["encode"](images)["tokens"])}, images
        ),
        "decode": _signature(
            lambda tokens: {"images": palette.decode_tensor(tokens % 12, (4, 6))},
            *sound["decode"].input_signature,
        ),
        "features": _signature(
            lambda images: {"features": sound["features"](images)["features"][:, -1]}, images
        ),
        "features_bytes": _signature(count, *sound["features_bytes"].input_signature),
        "complete": _signature(draw, *sound["complete"].input_signature),
        "serving_default": _signature(
            lambda images: sound["features"](images),
            tf.TensorSpec([1, 4, 6, 3], tf.uint8, "images"),
        ),
    }


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return _problems(_write_with(tmp_path_factory.mktemp("broken") / "1", _break, causal=False))


@pytest.mark.parametrize(
    "said",
    [
        "score is missing",
        "sample is there, which a model of this kind (masked) must not have",
        "encode returns codes, which the contract does not know",
        "encode returns no tokens (int32[B,24])",
        "the function __inference_",
        "must be compiled by XLA",
        "decode accepts tokens",
        "features returns features as float32[B,8], not float32[B,2,8]",
        "features_bytes answers differently in a batch",
        "complete answers the same request differently",
        "complete accepts temperature=nan",
        "complete accepts num_given=25",
        "the graph holds the operation RandomUniformInt",
        "serving_default takes images with a fixed batch size, uint8[1,4,6,3]",
    ],
)
def test_each_breach_of_the_contract_is_named(said, broken):
    assert said in broken


def test_the_default_must_answer_as_the_signature_it_stands_for(tmp_path):
    def double(model, _, sound):
        images = signatures.images_of(model)
        default = _signature(lambda x: {"features": 2 * sound["features"](x)["features"]}, images)
        return {**sound, "serving_default": default}

    path = _write_with(tmp_path / "1", double, causal=False)
    assert _problems(path) == "serving_default does not answer as features"


def test_warm_up_records_that_fail_are_named(causal, tmp_path):
    path = shutil.copytree(causal, tmp_path / "5")
    file = path / warmup.WARMUP
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(warmup.record("encode", {"images": tf.make_tensor_proto([[1.0]])}))
    assert "warm-up record 1 fails (INVALID_ARGUMENT: encode takes" in _problems(path)


@pytest.mark.parametrize(
    "content", [b"\xff" * 40, b"\x02" + bytes(11) + b"\x32\x7f" + bytes(4), b"1"]
)
def test_a_damaged_warm_up_file_is_refused(content, tmp_path):
    (tmp_path / warmup.WARMUP).parent.mkdir()
    (tmp_path / warmup.WARMUP).write_bytes(content)
    with pytest.raises(InputError, match="warm-up file is damaged"):
        list(read_warmup(str(tmp_path)))


def test_a_model_without_weights_or_graph_is_no_sound_model(causal, tmp_path):
    path = shutil.copytree(causal, tmp_path / "5")
    os.remove(path / "variables" / "variables.index")
    assert "features fails" in _problems(path)
    (path / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="breaks the contract: it cannot be loaded"):
        Check(str(path))


# Runs the program, then sees what it has imported.
PROGRAM = """
import atexit, runpy, sys
def look():
    found = {name.split(".")[0] for name in sys.modules} & {"tensorflow", "keras"}
    if found:
        print("imported", found, file=sys.stderr)
atexit.register(look)
runpy.run_module("tools.check_serving", run_name="__main__")
"""


def _run(*arguments):
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_program_prints_a_table_and_never_imports_tensorflows_python(causal, tmp_path):
    ended = _run(f"--saved_model={os.path.dirname(causal)}", f"--workdir={tmp_path}")
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    report = json.loads((tmp_path / "check_serving.json").read_text())
    for row in report["signatures"]:
        assert f"\n{row['name']} " in ended.stdout
    assert "image_bytes string[B]" in ended.stdout and "features float32[B,2,8]" in ended.stdout


def test_the_program_ends_with_2_and_one_line_for_a_broken_model(causal, tmp_path):
    path = shutil.copytree(causal, tmp_path / "5")
    metadata = json.loads((path / "assets" / "metadata.json").read_text())
    metadata["model"]["hidden_dim"] = 9
    (path / "assets" / "metadata.json").write_text(json.dumps(metadata))
    ended = _run(f"--saved_model={path}")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "features returns features as float32[B,2,8], not float32[B,2,9]" in ended.stderr
