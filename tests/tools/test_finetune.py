"""Tests of tools.finetune: signals, resuming, wrong inputs, recipes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from igpt_tf import config
from igpt_tf.config import recipes
from igpt_tf.evaluation import finetune  # noqa: F401  (what gin may name)
from tests import programs
from tests.evaluation.tiny import write_tiny

SHORT = (
    "finetune.learning_rates=[0.01]",
    "intervals.checkpoint_every=2",
    "intervals.evaluate_every=2",
)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "export" / "0", num_layers=1)


def test_sigterm_saves_and_another_length_is_another_run(saved_model, tmp_path):
    arguments = [f"--saved_model={saved_model}", f"--workdir={tmp_path}"]
    arguments += [f"--gin_param={binding}" for binding in SHORT]
    command = [sys.executable, "-m", "tools.finetune", *arguments]
    process = subprocess.Popen(
        [*command, "--gin_param=finetune.num_steps=100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob("checkpoints/ckpt-*.index")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 143, stderr
    checkpoint = max(
        int(path.stem.split("-")[1]) for path in tmp_path.glob("checkpoints/ckpt-*.index")
    )
    other_length = "--gin_param=finetune.num_steps=100"
    assert "finetune.num_steps" in programs.refused("tools.finetune", *arguments, other_length)
    steps = [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")]
    assert steps and max(steps) <= checkpoint


def test_foreign_model_is_refused_in_one_line(tmp_path):
    arguments = f"--saved_model={tmp_path}", f"--workdir={tmp_path / 'run'}"
    programs.refused_at_once("tools.finetune", *arguments)


def test_recipe_depends_on_the_data_unless_files_are_given():
    def names(*arguments):
        return [os.path.basename(path) for path in recipes("finetune", *arguments)]

    assert names({"name": "digits"}, []) == ["finetune.gin", "finetune_digits.gin"]
    assert names({"name": "npz"}, []) == ["finetune.gin"]
    assert names(None, ["mine.gin"]) == ["finetune.gin", "mine.gin"]


@pytest.mark.parametrize(
    ("name", "mirrored"),
    [
        *((name, True) for name in ("cifar10", "cifar100")),
        *((name, False) for name in ("digits", "mnist", "fashion_mnist", "npz", "image_folder")),
    ],
)
def test_only_cifar_images_are_flipped_by_default(name, mirrored):
    config.parse(config.recipes("finetune", {"name": name}, []), [])
    functions = [made.selector for made in config.bound("finetune.augmentation")]
    assert any(selector.endswith("flip") for selector in functions) == mirrored
    assert functions
