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
from tests.evaluation.tiny import write_tiny

SHORT = (
    "finetune.learning_rates=[0.01]",
    "intervals.checkpoint_every=2",
    "intervals.evaluate_every=2",
)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "export" / "0", num_layers=1)


def start(saved_model, workdir, *bindings):
    arguments = [f"--gin_param={binding}" for binding in bindings]
    command = [sys.executable, "-m", "tools.finetune", f"--saved_model={saved_model}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_saves_and_another_length_is_another_run(saved_model, tmp_path):
    process = start(saved_model, tmp_path, *SHORT, "finetune.num_steps=100000")
    while process.poll() is None and not list(tmp_path.glob("checkpoints/ckpt-*.index")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 143, stderr
    checkpoint = max(
        int(path.stem.split("-")[1]) for path in tmp_path.glob("checkpoints/ckpt-*.index")
    )
    other = start(saved_model, tmp_path, *SHORT, "finetune.num_steps=100")
    _, stderr = other.communicate()
    assert other.returncode == 2 and "finetune.num_steps" in stderr
    steps = [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")]
    assert steps and max(steps) <= checkpoint


def test_foreign_model_is_refused_in_one_line(tmp_path):
    process = start(tmp_path, tmp_path / "run")
    _, stderr = process.communicate()
    assert process.returncode == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1


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
