"""Tests of plans: their numbers are those of the run that they plan."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT, abstract_model
from igpt_tf.objectives import Autoregressive
from igpt_tf.training import plan as planning
from igpt_tf.training.optimization import build_optimizer

SIZES = {
    "image_size": (16, 16),
    "vocabulary_size": 512,
    "num_layers": 8,
    "hidden_dim": 128,
    "num_heads": 4,
}
XL = {"image_size": (64, 64), "num_layers": 60, "hidden_dim": 3072, "num_heads": 16}
L = {"image_size": (32, 32), "num_layers": 48, "hidden_dim": 1536, "num_heads": 16}
DEVICE = planning.Devices(memory=1e9, flops=1e12, utilisation=0.5)


def plan(devices=DEVICE, batch_size=64, optimizer=None, precision="float32", **sizes):
    model = abstract_model(lambda: ImageGPT(**{**SIZES, **sizes}))
    optimizer = optimizer or keras.optimizers.Adam()
    run = {"batch_size": batch_size, "num_steps": 1000, "precision": precision}
    return planning.plan_run(model, optimizer, devices, **run)


def sharded(count, gigabytes):
    return planning.Devices(memory=gigabytes * 1e9, flops=312e12, count=count, sharded=True)


def test_the_papers_largest_model_is_planned_without_being_allocated():
    def peak_kilobytes():
        return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])

    before = peak_kilobytes()
    result = plan(**XL)
    assert result["parameters"] == 6_810_875_904
    without = result["without_remat"]
    assert without["state_bytes"]["optimizer_state"] == 8 * 6_810_875_904
    assert (without["largest_batch"], without["gradient_accumulation_steps"]) == (0, None)
    assert peak_kilobytes() - before < 500_000  # the weights alone would be 27 million


@pytest.mark.parametrize(
    "sizes, parameters, block",
    [(XL, 6_810_875_904, 113_252_352), (L, 1_362_250_752, 28_314_624)],
)
@pytest.mark.parametrize("count, gigabytes", [(8, 80), (16, 40), (64, 16)])
def test_sharded_state_is_divided_over_the_devices(sizes, parameters, block, count, gigabytes):
    result = plan(sharded(count, gigabytes), **sizes)
    state = result["with_remat"]["state_bytes"]
    assert state == {
        "weights": 4 * parameters // count,
        "gradients": 4 * parameters // count,
        "optimizer_state": 8 * parameters // count,
        "gathered_weights": 4 * block,
        "gathered_gradients": 4 * block,
    }
    assert result["without_remat"]["state_bytes"]["gathered_weights"] == 4 * block
    assert result["with_remat"]["largest_batch"] >= 64
    received = 3 * 4 * parameters * (count - 1) // count
    assert result["with_remat"]["bytes_received_per_step"] == received


def test_bfloat16_halves_what_is_gathered_and_keeps_the_state():
    devices = sharded(8, 80)
    full, half = (plan(devices, precision=one, **XL) for one in planning.PRECISIONS)
    full, half = full["with_remat"], half["with_remat"]
    for name, size in full["state_bytes"].items():
        factor = 2 if name.startswith("gathered") else 1
        assert half["state_bytes"][name] * factor == size
    assert half["largest_batch"] > full["largest_batch"]


def test_a_weight_that_does_not_divide_stays_whole_on_each_device():
    devices = planning.Devices(memory=1e9, flops=1e12, count=3, sharded=True)
    sizes = {"num_layers": 1, "hidden_dim": 12, "num_heads": 2, "vocabulary_size": 16}
    count = plan(devices, 66, **sizes, image_size=(4, 4))["parameters"]
    held = plan(devices, 66, **sizes, image_size=(4, 4))["with_remat"]["state_bytes"]["weights"]
    assert held == 4 * count // 3
    whole = planning.Devices(memory=1e9, flops=1e12, count=5, sharded=True)
    assert (
        plan(whole, 65, **sizes)["with_remat"]["state_bytes"]["weights"]
        == 4 * (plan(whole, 65, **sizes)["parameters"])
    )


def matmul_flops(graph):
    """2 x m x n x k of every matrix product in a graph."""
    total = 0
    for op in graph.get_operations():
        if op.type in ("MatMul", "BatchMatMulV2"):
            across = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            left, product = op.inputs[0].shape, op.outputs[0].shape
            total += 2 * math.prod(product) * left[-2 if across else -1]
    return total


@pytest.mark.parametrize("causal", [True, False])
def test_flops_of_the_forward_pass_equal_those_of_the_traced_graph(causal):
    model = ImageGPT(**{**SIZES, "num_layers": 2}, causal=causal)
    traced = tf.function(model).get_concrete_function(tf.zeros((1, 256), "int32"))
    forward = planning.flops_per_image(model, remat=False) / 3
    assert matmul_flops(traced.graph) == pytest.approx(forward, rel=1e-6)


def test_remat_adds_the_forward_pass_of_the_blocks():
    model = abstract_model(lambda: ImageGPT(**SIZES))
    kept, again = (planning.flops_per_image(model, remat) for remat in (False, True))
    logits = 2 * 256 * 128 * 512
    assert again - kept == pytest.approx(kept / 3 - logits)


@pytest.mark.parametrize("arguments", [{}, {"ema_momentum": 0.9}, {"weight_decay": 0.1}])
def test_the_optimizer_state_is_what_the_optimizer_allocates(arguments):
    def optimizer():
        return build_optimizer(num_steps=2, steps_per_epoch=1, learning_rate=0.1, **arguments)

    model, built = ImageGPT(**SIZES), optimizer()
    built.build(model.trainable_variables)
    planned = plan(optimizer=optimizer())["without_remat"]["state_bytes"]["optimizer_state"]
    held = sum(v.value.dtype.size * v.value.shape.num_elements() for v in built.variables)
    assert planned == pytest.approx(held, rel=1e-4)


def test_the_largest_batch_fits_and_one_image_more_does_not():
    result = plan()
    for setting in ("without_remat", "with_remat"):
        image = result[setting]["activation_bytes_per_image"]
        largest = result[setting]["largest_batch"]
        available = 0.9e9 - sum(result[setting]["state_bytes"].values())
        assert image * largest <= available < image * (largest + 1)
    assert result["with_remat"]["largest_batch"] > 1.5 * result["without_remat"]["largest_batch"]


def test_a_compiler_is_asked_for_the_step_that_is_planned():
    asked = []

    def compiled_bytes(*step):
        asked.append(step)
        return 123_000_000

    devices = [planning.Devices(memory=0.4e9, flops=1e12)]
    [found] = planning.plan(
        devices=devices,
        objective=Autoregressive(),
        build_model=lambda **options: ImageGPT(**{**SIZES, **options}),
        build_optimizer=lambda **_: keras.optimizers.Adam(),
        batch_size=64,
        num_steps=1000,
        image_size=(16, 16),
        compiled_bytes=compiled_bytes,
    )
    settings = [found["without_remat"], found["with_remat"]]
    steps = [one["gradient_accumulation_steps"] for one in settings]
    assert asked == [(64, steps[0], False), (64, steps[1], True)] and steps[0] > steps[1]
    assert all(one["total_bytes"] <= 0.36e9 for one in settings)
    assert [one["compiled_bytes"] for one in settings] == [123_000_000] * 2
    assert re.search("total by the compiler +123.00 MB +123.00 MB", planning.format_plan(found))


def test_accumulation_steps_are_the_least_that_fit():
    def accumulation(megabytes):
        return plan(planning.Devices(memory=megabytes * 1e6, flops=1e12))["without_remat"][
            "gradient_accumulation_steps"
        ]

    assert accumulation(10_000) == 1
    found = [accumulation(megabytes) for megabytes in (600, 300, 150)]
    assert found == sorted(found) and all(64 % parts == 0 for parts in found)
    assert accumulation(40) is None


def test_devices_divide_the_batch_and_the_time():
    one = plan(planning.Devices(memory=1e9, flops=1e12))["without_remat"]
    four = plan(planning.Devices(memory=1e9, flops=1e12, count=4))["without_remat"]
    assert four["seconds"] == pytest.approx(one["seconds"] / 4)
    assert four["largest_batch"] == 4 * one["largest_batch"]
    assert four["gradient_accumulation_steps"] <= one["gradient_accumulation_steps"]


def test_time_is_flops_over_reached_flops_per_second():
    result = plan()["without_remat"]
    assert result["seconds"] == pytest.approx(1000 * result["flops_per_step"] / 0.5e12)


def test_the_measured_speed_is_plausible():
    assert 1e8 < planning.measure_flops()[0] < 1e16


@pytest.mark.parametrize(
    "wrong", [{"memory": 0}, {"memory": math.inf}, {"flops": -1}, {"utilisation": 40}]
)
def test_impossible_devices_are_rejected(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        planning.Devices(**{"memory": 1e9, "flops": 1e12, **wrong})


def test_a_batch_that_does_not_divide_by_the_devices_is_rejected():
    with pytest.raises(InputError, match="batch_size=64, devices=3"):
        plan(planning.Devices(memory=1e9, flops=1e12, count=3))


def test_a_figure_for_bfloat16_with_a_float32_run_gets_a_warning():
    [warning] = planning.precision_warnings(312e12, "float32")
    assert "bfloat16" in warning and "3.12e+14" in warning
    assert planning.precision_warnings(312e12, "mixed_bfloat16") == []
    assert planning.precision_warnings(67e12, "float32") == []


@pytest.mark.parametrize("busy, warned", [(3.0, False), (80.0, True)])
def test_a_busy_machine_gets_a_warning_when_it_is_measured(monkeypatch, busy, warned):
    monkeypatch.setattr(planning.psutil, "cpu_percent", lambda interval: busy)
    monkeypatch.setattr(planning, "_MEASURED_SECONDS", 0.01)
    _, warnings = planning.measure_flops()
    assert bool(warnings) == warned and all("80 %" in warning for warning in warnings)


LONG = {**SIZES, "num_layers": 12, "image_size": (32, 32), "hidden_dim": 256, "num_heads": 8}
MEASURED = [
    ({**SIZES, "num_layers": 12}, 24),
    ({**LONG, "hidden_dim": 64, "num_heads": 4}, 12),
    (LONG, 12),
]


S = {"image_size": (32, 32), "num_layers": 24, "hidden_dim": 512, "num_heads": 8}
M = {"image_size": (32, 32), "num_layers": 36, "hidden_dim": 1024, "num_heads": 8}
# (sizes, batch size, remat, bytes) by XLA of JAX 0.10.2 for an H100, in mixed_bfloat16, 2026-11-26:
#   python -m tools.compile --gin_file=gin/runs/imagenet32_m_ar.gin --target=h100 --batch_size=32 \
#       --gin_param='train.precision="mixed_bfloat16"'
COMPILED = [
    (S, 16, False, 5.98e9),
    (S, 16, True, 1.99e9),
    (M, 32, False, 33.46e9),
    (M, 32, True, 11.54e9),
    (L, 16, False, 47.55e9),
    (L, 16, True, 25.13e9),
]
# The same of the programs that ran on an H200 with Keras on JAX 0.11.2, 2026-11-26:
#   docs/experiments/step_time.json, arguments and temporaries
RUN = [
    (S, 32, False, 10.96e9),
    (M, 32, False, 34.54e9),
    (M, 32, True, 11.38e9),
    (L, 16, False, 50.47e9),
    (L, 16, True, 25.28e9),
    (XL, 2, True, 113.56e9),
]


@pytest.mark.parametrize("sizes, batch_size, remat, compiled", COMPILED + RUN)
def test_memory_agrees_with_the_compiler_of_a_gpu_within_20_percent(
    sizes, batch_size, remat, compiled
):
    devices = planning.Devices(memory=84.9e9, flops=989e12)
    result = plan(devices, batch_size, precision="mixed_bfloat16", **sizes)
    setting = result["with_remat" if remat else "without_remat"]
    planned = sum(setting["state_bytes"].values())
    planned += batch_size * setting["activation_bytes_per_image"]
    assert planned == pytest.approx(compiled, rel=0.2)


@pytest.mark.parametrize("side, fraction", [(16, 5 / 8), (32, 5 / 8), (64, 17 / 32)])
def test_queries_attend_in_the_blocks_of_the_model(side, fraction):
    model = abstract_model(lambda: ImageGPT(**{**SIZES, "image_size": (side, side)}))
    blocks = planning._query_blocks(model)
    assert sum(map(planning._num_scores, blocks)) == fraction * side**4


def step_peak(sizes, batch_size):
    """Bytes at the peak of a step, without weights and optimizer state."""
    command = [sys.executable, "-m", "tests.training.peak_memory", json.dumps(sizes)]
    counting = {**os.environ, "TF_CPU_ALLOCATOR_USE_BFC": "true"}
    ended = subprocess.run(
        [*command, str(batch_size)], env=counting, capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("sizes, batch_size", MEASURED)
def test_activations_agree_with_the_measured_peak_within_20_percent(sizes, batch_size):
    model = abstract_model(lambda: ImageGPT(**sizes))
    for remat in (False, True):
        planned = batch_size * planning.activation_bytes(model, "float32", remat)
        measured = step_peak({**sizes, "remat": remat}, batch_size)
        assert planned == pytest.approx(measured, rel=0.2), remat


@pytest.mark.slow
def test_remat_halves_the_memory_of_a_step_of_12_layers_and_1024_tokens():
    kept, recomputed = (step_peak({**LONG, "remat": again}, 8) for again in (False, True))
    assert recomputed < kept / 2
