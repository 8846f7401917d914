"""Tests of tools.compile. Those marked `compile` run the compilers of a TPU and a GPU."""

import importlib.util
import json
import subprocess
import sys

import pytest

SMALL = ["--gin_file=gin/runs/imagenet32_s_ar.gin", "--gin_param=build_model.num_layers=2"]


def run(*arguments):
    command = [sys.executable, "-m", "tools.compile", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def installed(*packages):
    return all(importlib.util.find_spec(name) for name in packages)


needs_compilers = pytest.mark.skipif(
    not installed("jax", "libtpu", "jax_plugins"),
    reason="the packages of requirements-compile.txt are missing (`make compile` installs them)",
)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target=h1000"], "unknown target; there are a100"),
        ([], "--target is missing"),
        (["--target=h100", "--sharded"], "--sharded needs --chips"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(arguments, message):
    ended = run(*SMALL, *arguments)
    assert ended.returncode == 2 and message in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(installed("jax"), reason="jax is installed")
def test_without_the_compilers_one_line_names_what_to_install():
    ended = run(*SMALL, "--target=h100")
    assert ended.returncode == 2 and "requirements-compile.txt" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.compile
@needs_compilers
@pytest.mark.parametrize("target", ["h100", "tpu-v5e"])
def test_a_training_step_compiles_and_its_arithmetic_is_the_models(tmp_path, target):
    ended = run(*SMALL, f"--target={target}", "--batch_size=4", f"--workdir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    assert "images/s at most" in ended.stdout
    kept, again = json.loads((tmp_path / f"compile_{target}.json").read_text())
    assert kept["fits"] and again["peak_bytes"] < kept["peak_bytes"]
    assert kept["state_bytes"] == pytest.approx(12 * kept["parameters"], rel=0.001)
    # The compiled step also computes the scores again in its backward pass.
    assert 1 < kept["compiled_flops"] / kept["model_flops"] < 1.1
    assert (tmp_path / f"compile_{target}_no_remat.hlo.txt").stat().st_size > 10_000


@pytest.mark.compile
@needs_compilers
def test_weights_and_optimizer_state_are_divided_over_a_slice(tmp_path):
    ended = run(
        "--gin_file=gin/runs/digits_tiny_ar.gin",
        "--gin_param=build_model.num_layers=2",
        "--image_size=8",
        "--target=h100",
        "--chips=4",
        "--sharded",
        "--batch_size=8",
        "--remat=on",
        f"--workdir={tmp_path}",
    )
    assert ended.returncode == 0, ended.stderr
    [found] = json.loads((tmp_path / "compile_h100.json").read_text())
    # 4 does not divide the 17 colours of the palette, but the width.
    assert found["state_bytes"] == pytest.approx(12 * found["parameters"] / 4, rel=0.01)
