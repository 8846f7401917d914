"""Wrong inputs of the probes: refused by the library, and in one line by the programs."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.data import npz
from igpt_tf.errors import InputError
from igpt_tf.evaluation import linear_probe, low_data
from igpt_tf.evaluation.linear_probe import LBFGS
from tests import programs
from tests.evaluation.tiny import write_tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype="uint8")
TWO = np.arange(40) % 2
# What is wrong -> (images, labels or None, part of the message).
DATA = {
    "gaps": (IMAGES, 5 * TWO, "every class needs training images"),
    "size": (IMAGES[:, :6, :6], TWO, "8x8 pixels"),
    "unlabelled": (IMAGES, None, "no labels"),
    "one_class": (IMAGES, np.zeros(40, int), "at least two classes"),
    "negative": (IMAGES, -TWO, "class numbers from 0"),
    "fractions": (IMAGES, TWO / 2, "labels must be integers"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, the same without its features, and the data sets."""
    folder = tmp_path_factory.mktemp("wrong")
    path = write_tiny(folder / "model" / "0")
    saved = tf.saved_model.load(path)
    bare = tf.Module()
    bare.saved = saved
    encode = {"encode": saved.signatures["encode"]}
    tf.saved_model.save(bare, str(folder / "bare"), signatures=encode)
    assets = os.path.join(path, "assets")
    shutil.copytree(assets, folder / "bare" / "assets", dirs_exist_ok=True)
    for name, (images, labels, _) in {**DATA, "two": (IMAGES, TWO, "")}.items():
        arrays = {"images": images} if labels is None else {"images": images, "labels": labels}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def in_process(folder, tool, data, model="model", **arguments):
    """The message with which the library refuses; the programs print it."""
    library = {"linear_probe": linear_probe.linear_probe, "low_data": low_data.low_data}[tool]
    with pytest.raises(InputError) as refusal:
        library(
            saved_model=str(folder / model),
            workdir=str(folder / "out"),
            source=npz(path=str(folder / f"{data}.npz")),
            solver=LBFGS(l2=[0.1]),
            **arguments,
        )
    return str(refusal.value)


def by_command(folder, tool, data, model):
    """The one error line of a program that exits with code 2."""
    path = folder / f"{data}.npz"
    return programs.refused(
        f"tools.{tool}",
        f"--saved_model={folder / model}",
        f"--workdir={folder / 'out'}",
        f"--gin_param={tool}.source=@npz()",
        f"--gin_param=npz.path='{path}'",
    )


@pytest.mark.parametrize("tool", ["linear_probe", "low_data"])
@pytest.mark.parametrize("data", DATA)
def test_data_that_do_not_fit_are_refused(folder, tool, data):
    if (tool, data) == ("linear_probe", "gaps"):
        pytest.skip("a probe allows classes without images")
    assert DATA[data][-1] in in_process(folder, tool, data)


@pytest.mark.parametrize("tool", ["linear_probe", "low_data"])
def test_model_without_features_is_refused(folder, tool):
    assert "signature=features" in in_process(folder, tool, "two", model="bare")


@pytest.mark.parametrize("k", [0, -4, 19])
def test_more_labels_than_a_class_has_are_refused(folder, k):
    line = in_process(folder, "low_data", "two", labels_per_class=[4, k])
    assert f"labels_per_class={k}" in line


def test_an_empty_list_of_labels_per_class_is_refused(folder):
    assert "at least one" in in_process(folder, "low_data", "two", labels_per_class=[])


@pytest.mark.parametrize("size", [0, 2.5])
def test_batch_size_must_be_a_positive_integer(folder, size):
    assert f"batch_size={size}" in in_process(folder, "linear_probe", "two", batch_size=size)


@pytest.mark.parametrize(
    ("tool", "data", "model", "message"),
    [
        ("linear_probe", "two", "bare", "signature=features"),
        ("low_data", "one_class", "model", "at least two classes"),
    ],
)
def test_programs_exit_with_code_2_and_one_line(folder, tool, data, model, message):
    assert message in by_command(folder, tool, data, model)
