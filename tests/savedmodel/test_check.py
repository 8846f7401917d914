"""The serving check passes valid models and names each difference from the specification."""

import functools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.objectives import objective_from_config
from igpt_tf.savedmodel import c_api, spec
from igpt_tf.savedmodel.check import check_saved_model
from igpt_tf.savedmodel.metadata import make_metadata
from igpt_tf.savedmodel.signatures import SignatureFunctions, build_functions, tensor_spec
from igpt_tf.savedmodel.warmup import WARMUP, encode_record
from igpt_tf.savedmodel.write import write_folder
from tests.serving import exported


def _problems(path):
    return " | ".join(check_saved_model(str(path))["problems"])


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_exported_models_meet_the_specification(kind, request):
    model = request.getfixturevalue(kind)
    report = check_saved_model(model.path)
    assert report["problems"] == []
    assert (report["kind"], report["step"]) == (kind, 70)
    assert report["score"] == model.saved.metadata["score"]
    names = {row["name"] for row in report["signatures"]}
    assert names == set(model.saved.signature_names)
    assert all(min(row["milliseconds"]) > 0 for row in report["signatures"])
    assert report["num_warmup_records"] == len(names)


def test_a_fine_tuned_model_classifies_by_default(classifier):
    report = check_saved_model(classifier)
    assert report["problems"] == []
    assert report["kind"] == "masked, fine-tuned"
    rows = {row["name"]: row for row in report["signatures"]}
    assert rows["classify_bytes"]["outputs"] == rows["classify"]["outputs"]
    assert rows["serving_default"]["outputs"] == rows["classify"]["outputs"]
    assert rows["classify"]["outputs"]["probabilities"] == "float32[B,3]"


def test_the_c_library_answers_as_tensorflow_does_and_knows_the_defaults(autoregressive):
    session = c_api.Session(autoregressive.path)
    try:
        assert session.signatures["sample"].inputs["top_k"].optional
        assert not session.signatures["sample"].inputs["seed"].optional
        request = {"num_images": np.int32(2), "seed": np.int32(3)}
        answer = session.run("sample", request)
        expected = autoregressive.call("sample", **request)
        np.testing.assert_array_equal(answer["tokens"], expected["tokens"])
        with pytest.raises(c_api.StatusError, match="INVALID_ARGUMENT: sample takes"):
            session.run("sample", {"num_images": np.int32(2)})
    finally:
        session.close()


def _function(function, signature: str):
    """A `tf.function` with the inputs of a signature of the table."""
    sizes = {"H": 4, "W": 6, "T": 24}
    inputs = spec.SIGNATURES[signature].with_sizes(sizes).inputs
    specs = [tensor_spec(name, tensor) for name, tensor in inputs.items()]
    return tf.function(function, input_signature=specs, autograph=False)


def _write_with(path, change):
    """Writes a masked model with the signatures that `change(palette, functions)` returns."""
    model, palette = exported.live(causal=False)
    objective = objective_from_config(exported.OBJECTIVES[False])
    metadata = make_metadata(model, palette, objective, data=None)
    functions = build_functions(SignatureFunctions(model, palette, objective), metadata)
    return write_folder(str(path), model, palette, change(palette, functions), metadata)


def _break(palette, functions):
    """Replaces every signature of a masked model by a wrong one; `score` is missing."""

    def encode(images):
        return {"codes": functions["encode"](images)["tokens"]}

    def decode(tokens):
        return {"images": palette.decode_tensor(tokens % 12, (4, 6))}

    def features(images):
        return {"features": functions["features"](images)["features"][:, -1]}

    def features_bytes(image_bytes):
        found = functions["features_bytes"](image_bytes)["features"]
        return {"features": found * tf.cast(tf.size(image_bytes), tf.float32)}

    def complete(images, num_given, seed, temperature, top_k, top_p):
        return {"images": images, "tokens": functions["encode"](images)["tokens"]}

    def sample(seed):
        return {"images": seed}

    def default(images):
        return functions["features"](images)

    return {
        "sample": tf.function(sample, input_signature=[tf.TensorSpec([], tf.int32, "seed")]),
        "encode": _function(encode, "encode"),
        "decode": _function(decode, "decode"),
        "features": _function(features, "features"),
        "features_bytes": _function(features_bytes, "features_bytes"),
        "complete": _function(complete, "complete"),
        "inpaint": functions["inpaint"],
        "serving_default": tf.function(
            default, input_signature=[tf.TensorSpec([1, 4, 6, 3], tf.uint8, "images")]
        ),
    }


@pytest.fixture(scope="module")
def problems_of_broken_model(tmp_path_factory):
    return _problems(_write_with(tmp_path_factory.mktemp("broken") / "1", _break))


@pytest.mark.parametrize(
    "problem",
    [
        "score is missing",
        "sample exists, but a model of this kind (masked) has none",
        "encode returns codes, which is not in the specification",
        "encode returns no tokens (int32[B,24])",
        "decode accepts tokens",
        "features returns features as float32[?,8], not float32[B,2,8]",
        "features_bytes answers differently in a batch",
        "complete accepts temperature=nan",
        "complete accepts num_given=25",
        "serving_default takes images with a fixed batch size, uint8[1,4,6,3]",
    ],
)
def test_each_difference_from_the_specification_is_named(problem, problems_of_broken_model):
    assert problem in problems_of_broken_model


def _add_forbidden(folder, palette, functions):
    """Adds forbidden operations to a masked model; those that write, write to a folder."""
    compiled = tf.function(lambda tokens: tokens + 0, jit_compile=True)

    def encode(images):
        return {"tokens": compiled(functions["encode"](images)["tokens"])}

    def decode(tokens):
        content = tf.io.read_file(tf.io.matching_files("/etc/hostname")[0])
        tf.io.write_file(f"{folder}/file", content)
        tf.raw_ops.SaveV2(
            prefix=f"{folder}/x", tensor_names=["x"], shape_and_slices=[""], tensors=[tokens]
        )
        state = tf.raw_ops.VarHandleOp(dtype=tf.int32, shape=[])
        tf.raw_ops.AssignVariableOp(resource=state, value=1)
        files = tf.data.TextLineDataset(content).take(1)
        [number] = tf.numpy_function(lambda: np.int32(0), [], [tf.int32])
        offset = tf.strings.length(files.get_single_element()) + number
        return {"images": functions["decode"](tokens + offset)["images"]}

    def complete(images, num_given, seed, temperature, top_k, top_p):
        tokens = tf.random.uniform([tf.shape(images)[0], 24], 0, 12, tf.int32)
        return {"images": images, "tokens": tokens}

    return {
        **functions,
        "encode": _function(encode, "encode"),
        "decode": _function(decode, "decode"),
        "complete": _function(complete, "complete"),
    }


@pytest.fixture(scope="module")
def model_with_forbidden_operations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forbidden")
    return _write_with(folder / "1", functools.partial(_add_forbidden, folder))


def test_forbidden_operations_are_named_and_not_run(model_with_forbidden_operations):
    report = check_saved_model(model_with_forbidden_operations)
    operations = (
        *("AssignVariableOp", "DatasetToSingleElement", "MatchingFiles", "PyFunc"),
        *("RandomUniformInt", "ReadFile", "SaveV2", "TakeDataset", "TextLineDataset", "WriteFile"),
    )
    function, *problems = report["problems"]
    assert "must be compiled by XLA" in function
    assert {f"the graph has the operation {name}" for name in operations} <= set(problems)
    assert all(problem.startswith("the graph has the operation ") for problem in problems)
    assert not {"RestoreV2", "MergeV2Checkpoints"} & {one.split()[-1] for one in problems}
    assert report["load_milliseconds"] is report["num_warmup_records"] is None
    assert not any(row["milliseconds"] for row in report["signatures"])


def test_answers_that_differ_from_call_to_call_are_named(
    model_with_forbidden_operations, monkeypatch
):
    monkeypatch.setattr("igpt_tf.savedmodel.check.graph_problems", lambda _: [])
    problems = _problems(model_with_forbidden_operations)
    assert "complete answers the same request differently" in problems


def test_the_default_must_answer_as_the_signature_it_stands_for(tmp_path):
    def double(palette, functions):
        def default(images):
            return {"features": 2 * functions["features"](images)["features"]}

        return {**functions, "serving_default": _function(default, "features")}

    path = _write_with(tmp_path / "1", double)
    assert _problems(path) == "serving_default does not answer as features"


def test_warm_up_records_that_fail_are_named(masked, tmp_path):
    path = shutil.copytree(masked.path, tmp_path / "5")
    with tf.io.TFRecordWriter(str(path / WARMUP)) as writer:
        writer.write(encode_record("encode", {"images": np.ones((1, 1), "float32")}))
    assert "warm-up record 1 fails (INVALID_ARGUMENT: encode takes" in _problems(path)


def test_a_model_without_weights_or_graph_is_refused(masked, tmp_path):
    path = shutil.copytree(masked.path, tmp_path / "5")
    os.remove(path / "variables" / "variables.index")
    assert "features fails" in _problems(path)
    (path / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="cannot be loaded.*export it again"):
        check_saved_model(str(path))


# Runs the program, then reports what it has imported.
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


def test_the_program_prints_a_table_and_does_not_import_tensorflow(masked, tmp_path):
    ended = _run(f"--saved_model={os.path.dirname(masked.path)}", f"--workdir={tmp_path}")
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    report = json.loads((tmp_path / "check_serving.json").read_text())
    for row in report["signatures"]:
        assert f"\n{row['name']} " in ended.stdout
    assert "image_bytes string[B]" in ended.stdout and "features float32[B,3,24]" in ended.stdout
    assert "`score` is a pseudo-likelihood" in ended.stdout


def test_the_program_ends_with_2_and_one_line_for_a_broken_model(masked, tmp_path):
    path = shutil.copytree(masked.path, tmp_path / "5")
    metadata = json.loads((path / "assets" / "metadata.json").read_text())
    metadata["model"]["hidden_dim"] = 9
    (path / "assets" / "metadata.json").write_text(json.dumps(metadata))
    ended = _run(f"--saved_model={path}")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "features returns features as float32[?,3,24], not float32[B,3,9]" in ended.stderr
