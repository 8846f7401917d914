"""Claims about plans: what they tell is what a run takes."""

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
from igpt_tf.training import plan as planning
from igpt_tf.training.optimization import build_optimizer, state_bytes

SIZES = {
    "image_size": (16, 16),
    "vocabulary_size": 512,
    "num_layers": 8,
    "hidden_dim": 128,
    "num_heads": 4,
}
DEVICE = planning.Device(memory=1e9, flops=1e12, utilisation=0.5)


def plan(device=DEVICE, batch_size=64, optimizer=None, **sizes):
    model = abstract_model(lambda: ImageGPT(**{**SIZES, **sizes}))
    optimizer = optimizer or keras.optimizers.Adam()
    return planning.plan(model, optimizer, device, batch_size=batch_size, num_steps=1000)


def test_the_papers_largest_model_is_planned_without_being_allocated():
    def highest():
        return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])

    before = highest()
    result = plan(image_size=(64, 64), num_layers=60, hidden_dim=3072, num_heads=16, batch_size=64)
    assert result["parameters"] == 6_810_875_904
    assert result["bytes"]["optimizer_state"] == 8 * 6_810_875_904
    assert (
        result["kept"]["largest_batch"] == 0
        and result["kept"]["gradient_accumulation_steps"] is None
    )
    assert highest() - before < 500_000  # kB, of which its weights would be 27 million


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
def test_the_arithmetic_of_the_forward_pass_is_that_of_the_traced_graph(causal):
    model = ImageGPT(**{**SIZES, "num_layers": 2}, causal=causal)
    traced = tf.function(model).get_concrete_function(tf.zeros((1, 256), "int32"))
    forward = planning.image_flops(model, remat=False) / 3
    assert matmul_flops(traced.graph) == pytest.approx(forward, rel=1e-6)


def test_recomputation_adds_the_blocks_forward_pass():
    model = abstract_model(lambda: ImageGPT(**SIZES))
    kept, again = (planning.image_flops(model, remat) for remat in (False, True))
    logits = 2 * 256 * 128 * 512
    assert again - kept == pytest.approx(kept / 3 - logits)


@pytest.mark.parametrize("arguments", [{}, {"ema_momentum": 0.9}, {"weight_decay": 0.1}])
def test_the_optimizers_state_is_what_it_allocates(arguments):
    def optimizer():
        return build_optimizer(num_steps=2, steps_per_epoch=1, learning_rate=0.1, **arguments)

    model, built = ImageGPT(**SIZES), optimizer()
    built.build(model.trainable_variables)
    planned = plan(optimizer=optimizer())["bytes"]["optimizer_state"]
    assert planned == pytest.approx(state_bytes(built), rel=1e-4)


def test_the_largest_batch_fits_and_one_image_more_does_not():
    result = plan()
    for way in ("kept", "recomputed"):
        image, largest = (
            result[way][key] for key in ("activation_bytes_an_image", "largest_batch")
        )
        room = 0.9e9 - sum(result["bytes"].values())
        assert image * largest <= room < image * (largest + 1)
    assert result["recomputed"]["largest_batch"] > 1.5 * result["kept"]["largest_batch"]


def test_accumulation_is_the_least_that_fits_and_no_more_than_the_batch():
    def accumulation(megabytes):
        return plan(planning.Device(memory=megabytes * 1e6, flops=1e12))["kept"][
            "gradient_accumulation_steps"
        ]

    assert accumulation(10_000) == 1
    found = [accumulation(megabytes) for megabytes in (600, 300, 150)]
    assert found == sorted(found) and all(64 % parts == 0 for parts in found)
    assert accumulation(40) is None


def test_devices_share_a_batch_and_the_time():
    one = plan(planning.Device(memory=1e9, flops=1e12))["kept"]
    four = plan(planning.Device(memory=1e9, flops=1e12, replicas=4))["kept"]
    assert four["seconds"] == pytest.approx(one["seconds"] / 4)
    assert four["largest_batch"] == 4 * one["largest_batch"]
    assert four["gradient_accumulation_steps"] <= one["gradient_accumulation_steps"]


def test_time_is_arithmetic_over_what_the_device_reaches():
    result = plan()["kept"]
    assert result["seconds"] == pytest.approx(1000 * result["flops_a_step"] / 0.5e12)


def test_a_measured_speed_is_of_this_planet():
    assert 1e8 < planning.measured_flops() < 1e16


@pytest.mark.parametrize("wrong", [{"memory": 0}, {"flops": -1}, {"utilisation": 40}])
def test_a_device_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        planning.Device(**{"memory": 1e9, "flops": 1e12, **wrong})


def test_a_batch_that_does_not_divide_among_the_devices_is_refused():
    with pytest.raises(InputError, match="batch_size=64, replicas=3"):
        plan(planning.Device(memory=1e9, flops=1e12, replicas=3))


LONG = {**SIZES, "num_layers": 12, "image_size": (32, 32), "hidden_dim": 256, "num_heads": 8}
MEASURED = [
    ({**SIZES, "num_layers": 12}, 24),
    ({**LONG, "hidden_dim": 64, "num_heads": 4}, 12),
    (LONG, 12),
]


def step_peak(sizes, batch_size):
    """Bytes that a step holds at its height, besides weights and the optimizer's state."""
    command = [sys.executable, "-m", "tests.training.peak_memory", json.dumps(sizes)]
    counting = {**os.environ, "TF_CPU_ALLOCATOR_USE_BFC": "true"}
    ended = subprocess.run(
        [*command, str(batch_size)], env=counting, capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("sizes, batch_size", MEASURED)
def test_activations_agree_with_a_measured_peak_within_a_fifth(sizes, batch_size):
    model = abstract_model(lambda: ImageGPT(**sizes))
    for remat in (False, True):
        planned = batch_size * planning.activation_bytes(model, "float32", remat)
        measured = step_peak({**sizes, "remat": remat}, batch_size)
        assert planned == pytest.approx(measured, rel=0.2), remat


@pytest.mark.slow
def test_recomputation_halves_what_a_step_of_12_layers_and_1024_tokens_holds():
    kept, recomputed = (step_peak({**LONG, "remat": again}, 8) for again in (False, True))
    assert recomputed < kept / 2
