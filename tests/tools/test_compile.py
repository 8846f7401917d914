"""Tests of tools.compile. Those marked `compile` run the compilers of a TPU and a GPU."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import programs

S = "--gin_file=gin/runs/imagenet32_s_ar.gin"
BFLOAT16 = '--gin_param=train.precision="mixed_bfloat16"'


def run(*arguments):
    return programs.run("tools.compile", *arguments)


def compile_digits(folder, target, *arguments):
    """The reports on the model of the digits."""
    digits = "--gin_file=gin/runs/digits_tiny_ar.gin", "--image_size=8"
    ended = run(*digits, f"--target={target}", f"--workdir={folder}", *arguments)
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / f"compile_{target}.json").read_text())


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
    ended = run(S, *arguments)
    assert ended.returncode == 2 and message in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(installed("jax"), reason="jax is installed")
def test_without_the_compilers_one_line_names_what_to_install():
    ended = run(S, "--target=h100")
    assert ended.returncode == 2 and "requirements-compile.txt" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.compile
@needs_compilers
@pytest.mark.parametrize(
    "target, batch_size, gigabytes", [("h100", 16, (5.98, 1.99)), ("tpu-v5e", 32, (13.04, 5.49))]
)
def test_rows_of_the_page_are_repeated(tmp_path, target, batch_size, gigabytes):
    """S of docs/accelerators.md, without and with remat."""
    size = f"--batch_size={batch_size}"
    ended = run(S, BFLOAT16, f"--target={target}", size, f"--workdir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    assert "images/s at most" in ended.stdout
    kept, again = json.loads((tmp_path / f"compile_{target}.json").read_text())
    found = kept["peak_bytes"] / 1e9, again["peak_bytes"] / 1e9
    assert found == pytest.approx(gigabytes, rel=0.02)
    assert kept["state_bytes"] == pytest.approx(12 * kept["parameters"], rel=0.001)
    # The compiled step also computes the scores again in its backward pass.
    assert 1 < kept["compiled_flops"] / kept["model_flops"] < 1.1
    assert (tmp_path / f"compile_{target}_no_remat.hlo.txt").stat().st_size > 10_000


@pytest.mark.compile
@needs_compilers
def test_microbatches_take_the_memory_of_one_and_the_arithmetic_of_all(tmp_path):
    def compile_in(steps):
        binding = f"--gin_param=step_options.gradient_accumulation_steps={steps}"
        options = "--batch_size=512", "--remat=off", binding
        return compile_digits(tmp_path / str(steps), "tpu-v5e", *options)

    with ThreadPoolExecutor() as pool:  # two programs at the same time
        [whole], [parts] = pool.map(compile_in, (1, 4))
    assert parts["compiled_flops"] == pytest.approx(whole["compiled_flops"], rel=0.02)
    assert parts["temporary_bytes"] < 0.5 * whole["temporary_bytes"]


@pytest.mark.compile
@needs_compilers
def test_sampling_computes_every_pixel_of_every_image_once(tmp_path):
    [found] = compile_digits(tmp_path, "h100", "--program=sampling", "--batch_size=16")
    # The products with the kernels; those of a single query are sums on a GPU.
    pixels, width, layers, colours = 16 * 64, 64, 4, 17
    products = 2 * pixels * (12 * layers * width**2 + width * colours)
    assert found["compiled_flops"] == pytest.approx(products, rel=0.05)


@pytest.mark.compile
@needs_compilers
def test_weights_and_optimizer_state_are_divided_over_a_slice(tmp_path):
    sizes = "--gin_param=build_model.num_layers=2", "--batch_size=8", "--remat=on"
    [found] = compile_digits(tmp_path, "h100", *sizes, "--chips=4", "--sharded")
    # 4 does not divide the 17 colours of the palette, but the width.
    assert found["state_bytes"] == pytest.approx(12 * found["parameters"] / 4, rel=0.01)
