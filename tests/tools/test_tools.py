"""The tools as programs: defaults, files, and one line for wrong input."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt_tf import config
from igpt_tf.data import tfrecords
from igpt_tf.errors import InputError
from igpt_tf.evaluation.linear_probe import linear_probe
from igpt_tf.evaluation.low_data import low_data
from tests import programs
from tests.evaluation.tiny import write_tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "export" / "0")


@pytest.fixture(scope="module")
def features_workdir(tmp_path_factory):
    """Shared by the tools, so that features are computed once."""
    return tmp_path_factory.mktemp("features")


def _done(tool, *arguments, **options):
    return programs.done(f"tools.{tool}", *arguments, **options)


def _refused(tool, *arguments, **options):
    return programs.refused(f"tools.{tool}", *arguments, **options)


def _report(path):
    """Returns the JSON of a tool and checks that it is sorted."""
    text = path.read_text()
    report = json.loads(text)
    assert text == json.dumps(report, indent=2, sort_keys=True) + "\n"
    return report


def _is_picture(path):
    picture = np.asarray(Image.open(path).convert("RGB"))
    return min(picture.shape[:2]) > 90 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 2


def test_linear_probe_needs_only_a_model_and_a_folder(saved_model, features_workdir):
    folder = features_workdir
    printed = _done("linear_probe", f"--saved_model={saved_model}", f"--workdir={folder}")
    report = _report(folder / "linear_probe.json")
    assert report["data"]["name"] == "digits" and len(report["layers"]) == 3
    for line in ("layer 2", "raw pixels", "palette counts", "untrained network", "No test split"):
        assert line in printed
    assert _is_picture(folder / "linear_probe.png")


def test_low_data_needs_only_a_model_and_a_folder(saved_model, features_workdir):
    folder = features_workdir
    _done("low_data", f"--saved_model={saved_model}", f"--workdir={folder}")
    report = _report(folder / "low_data.json")
    # There are fewer than 400 images per class: that default is left out.
    assert [row["labels_per_class"] for row in report["raw_pixels"]] == [4, 25]
    assert _is_picture(folder / "low_data.png")


def test_sgd_file_streams_features_and_is_found_from_any_folder(saved_model, tmp_path):
    _done(
        "linear_probe",
        f"--saved_model={saved_model}",
        "--workdir=probe",
        "--gin_file=gin/tools/linear_probe_sgd.gin",
        "--gin_param=sgd.num_steps=200",
        "--gin_param=linear_probe.num_train=300",
        folder=tmp_path,
    )
    report = _report(tmp_path / "probe" / "linear_probe.json")
    assert report["solver"] == "learning_rate" and report["num_images"]["train"] == 300


@pytest.mark.parametrize("tool", [linear_probe, low_data])
def test_cifar10_files_state_where_the_data_come_from(saved_model, tmp_path, tool):
    directory = f"cifar10.directory='{tmp_path / 'none'}'"
    config.parse([f"gin/tools/{tool.__name__}_cifar10.gin"], [directory])
    with pytest.raises(InputError, match="cs.toronto.edu"):
        tool(saved_model=saved_model, workdir=str(tmp_path))


def test_evaluate_scores_the_split_that_is_named(saved_model, tmp_path):
    _done("evaluate", f"--saved_model={saved_model}", f"--workdir={tmp_path}", "--split=train")
    report = _report(tmp_path / "evaluate.json")
    assert report["nats_per_token"] == pytest.approx(np.log(17), abs=1e-5)
    assert report["num_images"] == 1437
    assert _is_picture(tmp_path / "evaluate.png")


def test_sample_completes_the_images_of_a_folder(saved_model, tmp_path):
    (tmp_path / "own").mkdir()
    for value in (40, 200):
        image = Image.fromarray(np.full((20, 30, 3), value, "uint8"))
        image.save(tmp_path / "own" / f"{value}.png")
    printed = _done(
        "sample",
        f"--saved_model={saved_model}",
        f"--workdir={tmp_path}",
        f"--images={tmp_path / 'own'}",
        "--num_images=1",
        "--num_given=2",
        "--completions=3",
        "--seed=5",
    )
    names = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert names == [f"seed_{seed:05d}.png" for seed in range(5, 8)]
    assert _is_picture(tmp_path / "completions.png")
    assert "the first 1 of 2 images" in printed


def test_fit_palette_takes_a_data_set_from_gin(tmp_path):
    printed = _done(
        "fit_palette",
        f"--workdir={tmp_path}",
        "--num_colours=5",
        "--gin_param=fit_palette.source=@digits()",
    )
    assert str(tmp_path / "palette.npy") in printed
    assert np.load(tmp_path / "palette.npy").shape == (5, 3)
    assert _is_picture(tmp_path / "palette.png")


def test_make_tfrecords_takes_the_data_set_of_a_run_file(tmp_path):
    arguments = (f"--workdir={tmp_path / 'shards'}", "--gin_file=gin/runs/digits_tiny_ar.gin")
    printed = _done("make_tfrecords", *arguments, "--images_per_shard=500")
    assert "train: 1,437 images in 3 shards" in printed
    assert tfrecords(directory=str(tmp_path / "shards"), verify=True).image_size == (8, 8)
    assert "--gin_file" in _refused("make_tfrecords", f"--workdir={tmp_path / 'none'}")


def test_source_of_a_users_module_is_found_once_it_is_imported(tmp_path):
    (tmp_path / "my_source.py").write_text(
        "from igpt_tf.data import digits\n"
        "from igpt_tf.data.sources import register\n"
        "@register\n"
        "def my_digits():\n"
        "    return digits()\n"
    )
    data = {"name": "my_digits", "arguments": {}}
    model = write_tiny(tmp_path / "export" / "0", data=data, num_layers=1)
    common = (f"--saved_model={model}", f"--workdir={tmp_path}")
    assert "import MODULE" in _refused("evaluate", *common, folder=tmp_path)
    _done("evaluate", *common, "--gin_param=import my_source", folder=tmp_path)


def test_more_labels_than_a_class_has_are_refused(saved_model, tmp_path):
    line = _refused(
        "low_data",
        f"--saved_model={saved_model}",
        f"--workdir={tmp_path}",
        "--labels_per_class=4,400",
    )
    assert "labels_per_class=400" in line


def test_unread_bindings_and_folders_without_a_model_are_refused(saved_model, tmp_path):
    common = f"--workdir={tmp_path}"
    unread = "--gin_param=digits.heldout=0.3"
    assert "digits.heldout" in _refused("sample", f"--saved_model={saved_model}", common, unread)
    assert "does not exist" in _refused("sample", f"--saved_model={tmp_path / 'no'}", common)


def test_commands_that_programs_print_run_in_a_shell_whatever_the_names(saved_model, tmp_path):
    folder = tmp_path / "my model (1)"
    printed = _done("export_huggingface", f"--saved_model={saved_model}", f"--workdir={folder}")
    command = printed.splitlines()[-1].removeprefix("Upload it with: ")
    assert shlex.split(command) == ["hf", "upload", "USER/my-model-1", str(folder)]
    ended = programs.run("tools.demo", f"--workdir={folder}", "--gin_file=no such.gin")
    [shown] = [line for line in ended.stdout.splitlines() if line.startswith("== ")]
    assert f"--workdir={folder}" in shlex.split(shown)


def test_demo_exits_with_the_code_of_the_step_that_failed(tmp_path):
    arguments = (f"--workdir={tmp_path / 'run'}", f"--gin_file={tmp_path / 'missing.gin'}")
    assert "missing.gin" in _refused("demo", *arguments)
