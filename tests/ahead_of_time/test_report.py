"""Tests of targets and reports; they need no compiler."""

import math

import pytest

from igpt_tf.ahead_of_time import compilers, report, targets
from igpt_tf.ahead_of_time.compilers import Compiled, DoesNotFit
from igpt_tf.ahead_of_time.hlo import Array
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT, abstract_model

H100 = targets.load("h100")
MODULE = """
HloModule m

ENTRY %main (a: bf16[16,256,64], b: bf16[16,256,64]) -> f32[16,256,256] {
  %a = bf16[16,256,64]{2,1,0} parameter(0)
  %b = bf16[16,256,64]{2,1,0} parameter(1)
  ROOT %dot = f32[16,256,256]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={2}
}
"""  # noqa: E501


def small_model(**changes):
    sizes = {"vocabulary_size": 16, "num_layers": 2, "hidden_dim": 256, "num_heads": 4}
    return abstract_model(lambda: ImageGPT(image_size=(16, 16), **sizes, **changes))


def compiled(peak):
    return Compiled(
        argument_bytes=10,
        result_bytes=2,
        temporary_bytes=int(peak) - 12,
        seconds=1.0,
        module=MODULE,
    )


@pytest.mark.parametrize("name", targets.names())
def test_targets_have_plausible_numbers_and_sources(name):
    target = targets.load(name)
    assert 1e10 < target.memory_bytes < 1e12 and 1e11 < target.bytes_per_second < 1e13
    assert 1e13 < target.flops["float32"] <= target.flops["mixed_bfloat16"] < 1e16
    assert target.sources and target.compiler in ("cuda", "tpu")
    if target.compiler == "cuda":
        assert f"device_memory_size: {target.memory_bytes} " in target.gpu_description
        assert f"memory_bandwidth: {target.bytes_per_second:.0f} " in target.gpu_description
    else:
        for chips, topology in target.topologies.items():
            shape = topology.split(":")[1].split("x")
            assert int(chips) in (1, math.prod(map(int, shape)))


def test_an_unknown_target_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match="a100, h100, .*Received: target=h1000"):
        targets.load("h1000")


def test_missing_packages_are_named_in_one_line(monkeypatch):
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="requirements-compile.txt.*Received: missing=jax"):
        compilers.check_packages(H100)


def test_time_is_bounded_by_arithmetic_and_memory_traffic():
    found = report.describe(H100, small_model(), compiled(1e9), 4, "mixed_bfloat16")
    moved, flops = 2 * 16 * 256 * 64 * 2 + 16 * 256 * 256 * 4, 2 * 16 * 256 * 256 * 64
    assert (found["bytes_moved"], found["compiled_flops"]) == (moved, flops)
    assert found["scores_bytes"] == 16 * 256 * 256 * 4
    assert found["roofline_seconds"] == pytest.approx(moved / 3.35232e12)
    assert found["images_per_second"] == pytest.approx(4 / found["roofline_seconds"])
    assert found["fits"] and (found["state_bytes"], found["peak_bytes"]) == (10, 1e9)
    text = report.format_reports([found])
    assert "NVIDIA H100 SXM 80 GB (84.94 GB)" in text and "1.00 GB" in text


def test_sampling_is_reported_per_image_and_pixel():
    found = report.describe_sampling(H100, small_model(), compiled(1e9), 4, "mixed_bfloat16")
    moved = 2 * 16 * 256 * 64 * 2 + 16 * 256 * 256 * 4
    assert found["bytes_moved_per_image_and_pixel"] == moved / 4 / 256
    assert found["kernels_per_pixel"] == 1 / 256
    assert "sampling" in report.format_reports([found])


def test_scores_are_those_of_a_microbatch():
    four = report.describe(H100, small_model(), compiled(1e9), 16, "float32", microbatches=4)
    whole = report.describe(H100, small_model(), compiled(1e9), 16, "float32")
    assert (four["scores_bytes"], whole["scores_bytes"]) == (16 * 256 * 256 * 4, 0)


def test_a_program_that_the_compiler_refuses_is_reported_with_its_words():
    model = small_model(remat=True)
    found = report.describe(H100, model, None, 4, "float32", error="used 17G of 15.75G hbm")
    text = report.format_reports([found])
    assert "With remat: used 17G of 15.75G hbm" in text and "fits" in text


@pytest.mark.parametrize("first", [1, 8, 64, 400])
@pytest.mark.parametrize("chips", [1, 4])
def test_the_largest_batch_is_found_in_a_few_compilations(first, chips):
    sizes, limit = [], report.usable_bytes(H100)

    def compile_batch(size):
        sizes.append(size)
        peak = 5e9 + 0.5e9 * size / chips
        if peak > 1.2 * limit:
            raise DoesNotFit("too large")
        return compiled(peak)

    first = first * chips
    size, program = report.largest_batch(compile_batch, H100, chips, first)
    assert size % chips == 0 and program.peak_bytes <= limit < program.peak_bytes + 8 * 0.5e9
    assert size == 8 * chips * (size // (8 * chips))
    assert len(sizes) <= 4


def test_a_model_of_which_no_image_fits_is_refused():
    def compile_batch(size):
        return compiled(1e12 + size)

    with pytest.raises(DoesNotFit, match="1 images need"):
        report.largest_batch(compile_batch, H100, 1, 4)


@pytest.mark.parametrize(
    "dims, expected",
    [
        ((64, 256, 768), True),
        ((8, 8, 256, 1024), True),
        ((8, 8, 1024, 1024), True),
        ((64, 1024, 256), True),
        ((8, 1024, 512), False),  # as many numbers as [8,8,256,256]
        ((8, 8, 1024, 64), False),
        ((8192, 2048), False),
        ((24, 8, 1024, 2048), False),
    ],
)
def test_scores_are_told_from_other_arrays_by_their_shape(dims, expected):
    assert report.is_scores(Array("f32", dims, False), 64, 64, 1024) == expected
