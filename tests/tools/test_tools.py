"""Claims about the programs: defaults that need nothing else, files, and one line for a mistake."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from igpt_tf.data import tfrecords
from tests.evaluation.tiny import write_tiny


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "export" / "0")


@pytest.fixture(scope="module")
def features_workdir(tmp_path_factory):
    """Shared by the programs, as people do, so that features are computed once."""
    return tmp_path_factory.mktemp("features")


def _run(tool, *arguments):
    command = [sys.executable, "-m", f"tools.{tool}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def _done(tool, *arguments):
    ended = _run(tool, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def _refused(tool, *arguments):
    """The one line of an exit with code 2."""
    ended = _run(tool, *arguments)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2 and len(errors) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return errors[0]


def _report(path):
    """The JSON of a tool, after checking that it is sorted."""
    text = path.read_text()
    report = json.loads(text)
    assert text == json.dumps(report, indent=2, sort_keys=True) + "\n"
    return report


def _shows_something(path):
    picture = np.asarray(Image.open(path).convert("RGB"))
    return min(picture.shape[:2]) > 90 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 2


def test_linear_probe_needs_a_model_and_a_folder_only(saved_model, features_workdir):
    folder = features_workdir
    printed = _done("linear_probe", f"--saved_model={saved_model}", f"--workdir={folder}")
    report = _report(folder / "linear_probe.json")
    assert report["data"]["name"] == "digits" and len(report["layers"]) == 3
    for line in ("layer 2", "raw pixels", "palette counts", "random network", "no test part"):
        assert line in printed
    assert _shows_something(folder / "linear_probe.png")


def test_low_data_needs_a_model_and_a_folder_only(saved_model, features_workdir):
    folder = features_workdir
    _done("low_data", f"--saved_model={saved_model}", f"--workdir={folder}")
    report = _report(folder / "low_data.json")
    # 400 labels a class are more than there are: left out, as nobody asked for them.
    assert [row["labels_per_class"] for row in report["raw_pixels"]] == [4, 25]
    assert _shows_something(folder / "low_data.png")


def test_the_shipped_sgd_file_probes_in_a_stream(saved_model, tmp_path):
    _done(
        "linear_probe",
        f"--saved_model={saved_model}",
        f"--workdir={tmp_path}",
        "--gin_file=gin/tools/linear_probe_sgd.gin",
        "--gin_param=sgd.num_steps=200",
        "--gin_param=linear_probe.num_train=300",
    )
    report = _report(tmp_path / "linear_probe.json")
    assert report["solver"] == "learning_rate" and report["num_images"]["train"] == 300


@pytest.mark.parametrize("tool", ["linear_probe", "low_data"])
def test_the_shipped_cifar10_files_say_where_the_data_are_from(saved_model, tmp_path, tool):
    line = _refused(
        tool,
        f"--saved_model={saved_model}",
        f"--workdir={tmp_path}",
        f"--gin_file=gin/tools/{tool}_cifar10.gin",
        f"--gin_param=cifar10.directory='{tmp_path / 'none'}'",
    )
    assert "cs.toronto.edu" in line


def test_evaluate_writes_the_loss_and_where_it_falls(saved_model, tmp_path):
    _done("evaluate", f"--saved_model={saved_model}", f"--workdir={tmp_path}", "--split=train")
    report = _report(tmp_path / "evaluate.json")
    assert report["nats_per_token"] == pytest.approx(np.log(17), abs=1e-5)
    assert report["num_images"] == 1437
    assert (tmp_path / "evaluate.png").exists()


def test_sample_completes_the_images_of_a_folder(saved_model, tmp_path):
    (tmp_path / "own").mkdir()
    for value in (40, 200):
        image = Image.fromarray(np.full((20, 30, 3), value, "uint8"))
        image.save(tmp_path / "own" / f"{value}.png")
    _done(
        "sample",
        f"--saved_model={saved_model}",
        f"--workdir={tmp_path}",
        f"--images={tmp_path / 'own'}",
        "--num_given=2",
        "--completions=3",
        "--seed=5",
    )
    names = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert names == [f"seed_{seed:05d}.png" for seed in range(5, 11)]
    assert _shows_something(tmp_path / "completions.png")


def test_fit_palette_takes_a_data_set_from_gin(tmp_path):
    _done(
        "fit_palette",
        f"--workdir={tmp_path}",
        "--num_colours=5",
        "--gin_param=fit_palette.source=@digits()",
    )
    report = _report(tmp_path / "palette.json")
    assert report["used_colours"] == 5 and 20 < report["psnr"] < 30
    assert np.load(tmp_path / "palette.npy").shape == (5, 3)
    assert _shows_something(tmp_path / "palette.png")


def test_make_tfrecords_takes_the_data_set_of_a_run_file(tmp_path):
    arguments = (f"--workdir={tmp_path / 'shards'}", "--gin_file=gin/runs/digits_tiny_ar.gin")
    printed = _done("make_tfrecords", *arguments, "--images_per_shard=500")
    assert "train: 1,437 images in 3 shards" in printed
    assert tfrecords(directory=str(tmp_path / "shards"), verify=True).image_size == (8, 8)
    assert "--gin_file" in _refused("make_tfrecords", f"--workdir={tmp_path / 'none'}")


def test_images_of_another_size_than_the_models_are_refused(saved_model, tmp_path):
    images = np.zeros((20, 6, 6, 3), "uint8")
    np.savez(tmp_path / "small.npz", images=images, labels=np.arange(20) % 2)
    line = _refused(
        "linear_probe",
        f"--saved_model={saved_model}",
        f"--workdir={tmp_path}",
        "--gin_param=linear_probe.source=@npz()",
        f"--gin_param=npz.path='{tmp_path / 'small.npz'}'",
    )
    assert "8x8 pixels" in line and "(6, 6)" in line


def test_more_labels_than_a_class_has_are_refused(saved_model, tmp_path):
    line = _refused(
        "low_data",
        f"--saved_model={saved_model}",
        f"--workdir={tmp_path}",
        "--labels_per_class=4,400",
    )
    assert "labels_per_class=400" in line


def test_bindings_nobody_reads_and_folders_that_are_no_model_are_refused(saved_model, tmp_path):
    common = f"--workdir={tmp_path}"
    unread = "--gin_param=digits.heldout=0.3"
    assert "digits.heldout" in _refused("sample", f"--saved_model={saved_model}", common, unread)
    assert "does not exist" in _refused("sample", f"--saved_model={tmp_path / 'no'}", common)


def test_the_demo_ends_with_the_exit_code_of_the_step_that_failed(tmp_path):
    arguments = (f"--workdir={tmp_path / 'run'}", f"--gin_file={tmp_path / 'missing.gin'}")
    assert "missing.gin" in _refused("demo", *arguments)
