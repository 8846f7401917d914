"""Memory and time that a run needs on given devices, computed without allocating the model.

Weights, gradients and optimizer state are exact. Activations are a model of what TensorFlow's CPU
executor holds at the peak of a step, with factors fitted to measurements: three models agree within
20 % (tests/training/test_plan.py). After a change of a block, measure again. The compiler of an
H100 agrees within 13 % in total memory; a TPU v5e needs up to 1.3 times as much without remat and
1.8 times with it (docs/accelerators.md). On CPUs a step divides its batch into microbatches by
default (`step_options.gradient_accumulation_steps`) and needs less; its scores are float32 in
bfloat16 too.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable

import gin
import keras
import psutil

from igpt_tf import config, files, formatting
from igpt_tf.data import Source
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT, abstract_model
from igpt_tf.model.attention import QueryBlock, query_blocks
from igpt_tf.objectives import Objective

PRECISIONS = ("float32", "mixed_bfloat16")
# Tensors of each block, in units of T x D numbers per image, that a step keeps for its backward
# pass: the inputs of the two norms 2; queries, keys and values 3; queries in blocks 1; the outputs
# of the heads 1; the first product of the MLP 4. With remat it keeps the block's input only.
KEPT_PER_BLOCK = 2 + 3 + 1 + 1 + 4
KEPT_PER_BLOCK_WITH_REMAT = 1
# Tensors alive only while one block, or the output layer, computes; the largest sum counts.
MLP_TENSORS = 17  # T x D numbers: four tensors of width 4 D, and the norm
HEAD_TENSORS = 4  # T x D numbers: gradients of queries, keys and values, beside the scores
SCORE_TENSORS = 4  # [heads,queries,T] of the last block: weights, scores, the gradients of both
LOGITS_TENSORS = 3  # float32[T,V]: logits, probabilities, gradients
RESERVED_FRACTION = 0.1  # of a device's memory: the runtime, workspaces, gaps between tensors

# Above it a figure is one for bfloat16 or TensorFloat-32: an H100 has 67e12 FLOP/s in float32.
_MAX_FLOAT32_FLOPS = 100e12
_MAX_BUSY_PERCENT = 25  # of the CPU, by other programs, while FLOP/s are measured
_MATRIX_SIZE, _MEASURED_SECONDS = 2048, 1.0


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
        memory: Bytes per device.
        flops: Peak floating-point operations per second per device.
        utilisation: Fraction of `flops` that training is assumed to reach.
        count: Number of devices.
        sharded: Whether weights, gradients and optimizer state are divided over the devices;
            otherwise each device holds all of them.

    Raises:
        InputError: A number is out of range.
    """

    memory: float
    flops: float
    utilisation: float = 0.4
    count: int = 1
    sharded: bool = False

    def __post_init__(self):
        if not (0 < self.memory < math.inf and 0 < self.flops < math.inf and self.count >= 1):
            raise InputError(
                "memory and FLOP/s must be finite and above 0, the number of devices at least 1. "
                f"Received: memory={self.memory:g}, flops={self.flops:g}, count={self.count}"
            )
        if not 0 < self.utilisation <= 1:
            raise InputError(
                f"the utilisation must be in (0, 1]. Received: utilisation={self.utilisation}"
            )


@gin.configurable
def plan(
    *,
    devices: list[Devices],
    objective: Objective,
    build_model: Callable,
    build_optimizer: Callable,
    batch_size: int,
    num_steps: int,
    image_size: tuple[int, int],
    precision: str = "float32",
    compiled_bytes: Callable[[int, int, bool], int | None] | None = None,
    workdir: str | None = None,
) -> list[dict]:
    """Plans a run on each of several sets of devices.

    Args:
        devices: The sets.
        objective: See `train`, as the following ones.
        build_model: Builds the model.
        build_optimizer: Builds the optimizer.
        batch_size: Global batch size in images.
        num_steps: Number of optimizer steps.
        image_size: (H, W).
        precision: "float32" or "mixed_bfloat16".
        compiled_bytes: Function (batch size, gradient accumulation steps, remat) -> memory of a
            step as a compiler counts it, None if it does not fit. Stored as "compiled_bytes".
        workdir: Folder for `plan.json`; None for no file.

    Returns:
        A plan per set, see `plan_run`.

    Raises:
        InputError: An argument is out of range, or the batch does not divide by the devices.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"train.precision must be one of {', '.join(PRECISIONS)}. Received: {precision=}"
        )
    model = abstract_model(lambda: build_model(image_size=image_size, causal=objective.causal))
    optimizer = build_optimizer(num_steps=num_steps, steps_per_epoch=0)
    run = {"batch_size": batch_size, "num_steps": num_steps, "precision": precision}
    plans = [plan_run(model, optimizer, one, **run) for one in devices]
    for one in plans if compiled_bytes else ():
        for name, remat in (("without_remat", False), ("with_remat", True)):
            if steps := one[name]["gradient_accumulation_steps"]:
                one[name]["compiled_bytes"] = compiled_bytes(batch_size, steps, remat)
    if workdir:
        files.write_json(os.path.join(workdir, "plan.json"), plans)
    return plans


def plan_run(
    model: ImageGPT,
    optimizer: keras.optimizers.Optimizer,
    devices: Devices,
    *,
    batch_size: int,
    num_steps: int,
    precision: str = "float32",
) -> dict:
    """Plans a run.

    Args:
        model: A model; an `abstract_model` suffices.
        optimizer: An optimizer that is not built.
        devices: The devices.
        batch_size: Global batch size in images.
        num_steps: Number of optimizer steps.
        precision: "float32" or "mixed_bfloat16".

    Returns:
        JSON-able. Sizes are bytes per device and times seconds. "without_remat" and "with_remat"
        are the two settings of `build_model.remat`. "gradient_accumulation_steps" is None if the
        memory does not suffice for one image.

    Raises:
        InputError: The batch does not divide by the devices.
    """
    if batch_size % devices.count:
        raise InputError(
            f"the batch size must divide by the number of devices. Received: {batch_size=}, "
            f"devices={devices.count}"
        )
    return {
        "parameters": model.count_params(),
        "batch_size": batch_size,
        "num_steps": num_steps,
        "precision": precision,
        "devices": {**dataclasses.asdict(devices), "reserved_fraction": RESERVED_FRACTION},
        **{
            name: _plan_setting(model, optimizer, devices, batch_size, num_steps, precision, remat)
            for name, remat in (("without_remat", False), ("with_remat", True))
        },
    }


def _plan_setting(model, optimizer, devices, batch_size, num_steps, precision, remat) -> dict:
    state = state_bytes(model, optimizer, devices, precision)
    per_image = activation_bytes(model, precision, remat)
    available = devices.memory * (1 - RESERVED_FRACTION) - sum(state.values())
    images = batch_size // devices.count
    flops = batch_size * flops_per_image(model, remat)
    seconds = flops / (devices.flops * devices.utilisation * devices.count)

    def activations(steps):  # the sum of the gradients is held beside those of the microbatch
        return per_image * images / steps + (state["gradients"] if steps > 1 else 0)

    divisors = (number for number in range(1, images + 1) if images % number == 0)
    steps = next((number for number in divisors if activations(number) <= available), None)
    return {
        "state_bytes": state,
        "activation_bytes_per_image": per_image,
        "total_bytes": steps and sum(state.values()) + activations(steps),
        "largest_batch": max(0, int(available // per_image)) * devices.count,
        "gradient_accumulation_steps": steps,
        "bytes_received_per_step": _received_bytes(model, devices, precision, steps or 1),
        "flops_per_step": flops,
        "seconds_per_step": seconds,
        "seconds": seconds * num_steps,
    }


def state_bytes(
    model: ImageGPT,
    optimizer: keras.optimizers.Optimizer,
    devices: Devices,
    precision: str,
) -> dict[str, int]:
    """Bytes per device that do not depend on the batch, by what they hold.

    A sharded weight is divided along its first axis that divides by the devices; a weight without
    such an axis stays whole on each. A block gathers its weights in the compute dtype when it runs,
    and again in its backward pass.
    """
    shards = devices.count if devices.sharded else 1
    held = sum(_shard_size(weight.shape, shards) for weight in model.weights)
    state = {
        "weights": 4 * held,
        "gradients": 4 * held,
        "optimizer_state": 4 * held * _numbers_per_weight(optimizer),
    }
    if devices.sharded:
        size = 2 if precision == "mixed_bfloat16" else 4
        block = model.blocks[0].count_params()
        state["gathered_weights"] = size * block
        state["gathered_gradients"] = size * block  # of one block, before they are divided
    elif precision == "mixed_bfloat16":
        matrices = [weight.shape for weight in model.weights if len(weight.shape) > 1]
        state["bfloat16_weights"] = 2 * sum(map(math.prod, matrices))
    return state


def _shard_size(shape: tuple[int, ...], shards: int) -> int:
    """Numbers per device of a weight."""
    divisible = any(size % shards == 0 for size in shape)
    return math.prod(shape) // (shards if divisible else 1)


def _numbers_per_weight(optimizer: keras.optimizers.Optimizer) -> int:
    """How many numbers the optimizer keeps per weight, counted on a small one."""
    weight = keras.Variable([[0.0] * 4])
    optimizer.build([weight])
    return sum(variable.shape == weight.shape for variable in optimizer.variables)


def _query_blocks(model: ImageGPT) -> list[QueryBlock]:
    return query_blocks(model.sequence_length, model.causal)


def _num_scores(block: QueryBlock) -> int:
    return block.size * block.num_keys


def activation_bytes(model: ImageGPT, precision: str, remat: bool) -> float:
    """Bytes per image at the peak of a step."""
    size = 2 if precision == "mixed_bfloat16" else 4
    position = model.sequence_length * model.hidden_dim * size
    scores = size * model.num_heads * max(map(_num_scores, _query_blocks(model)))
    logits = 4 * model.sequence_length * model.vocabulary_size
    kept = position * KEPT_PER_BLOCK * model.num_layers
    if remat:  # the inputs of all blocks, and all tensors of the one that is computed again
        kept = position * (KEPT_PER_BLOCK_WITH_REMAT * model.num_layers + KEPT_PER_BLOCK)
    heads = position * HEAD_TENSORS + scores * SCORE_TENSORS
    return kept + max(position * MLP_TENSORS, heads, logits * LOGITS_TENSORS)


def _received_bytes(model, devices: Devices, precision: str, steps: int) -> int:
    """Bytes that a device receives per step when sharded: weights are gathered, gradients divided.

    Each microbatch gathers the weights for its forward pass and for its backward pass, and sums its
    gradients over the devices.
    """
    if not devices.sharded:
        return 0
    size = 2 if precision == "mixed_bfloat16" else 4
    exchanges = 3 * steps
    return exchanges * size * model.count_params() * (devices.count - 1) // devices.count


def flops_per_image(model: ImageGPT, remat: bool) -> float:
    """Floating-point operations of the forward and backward pass of an image.

    A multiplication and an addition count as two, the backward pass as two forward passes, remat
    as one more forward pass of the blocks. Matrix products count, without those that a block always
    computes twice to save memory: these are part of what the utilisation leaves out.
    """
    length, dim = model.sequence_length, model.hidden_dim
    matrices = 2 * length * 12 * dim**2
    pairs = sum(map(_num_scores, _query_blocks(model)))
    blocks = model.num_layers * (matrices + 4 * dim * pairs)
    logits = 2 * length * dim * model.vocabulary_size
    return 3 * (blocks + logits) + (blocks if remat else 0)


def measure_flops(precision: str = "float32") -> tuple[float, list[str]]:
    """Measures this machine in matrix products for a second.

    Returns:
        (floating-point operations per second, warnings).
    """
    import tensorflow as tf

    busy = psutil.cpu_percent(interval=0.3)
    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    x = tf.ones((_MATRIX_SIZE, _MATRIX_SIZE), dtype)
    tf.reduce_sum(x @ x).numpy()  # the first product allocates
    products, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _MEASURED_SECONDS:
        tf.reduce_sum(x @ x).numpy()
        products += 1
    warnings = []
    if busy > _MAX_BUSY_PERCENT:
        warnings.append(
            f"other programs use {busy:.0f} % of this machine's processor: the measured FLOP/s are "
            "too low and the times too long; try again later"
        )
    return products * 2 * _MATRIX_SIZE**3 / elapsed, warnings


def precision_warnings(flops: float, precision: str) -> list[str]:
    """A warning if `flops` is a figure for another precision than the run's."""
    if precision != "float32" or flops <= _MAX_FLOAT32_FLOPS:
        return []
    return [
        f"the run computes in float32 and {flops:.3g} FLOP/s is a figure for bfloat16 or "
        "TensorFloat-32, so the time is too short. An A100 reaches 312e12 in bfloat16, 156e12 in "
        "TensorFloat-32, which TensorFlow uses for float32 products on it, and 19.5e12 in float32; "
        "train.precision = 'mixed_bfloat16' computes in bfloat16"
    ]


def bound_image_size() -> tuple[int, int] | None:
    """(H, W) if a binding states it; None if only the data set itself knows it.

    Raises:
        InputError: No data set is bound.
    """
    source = config.bound("train.source")
    if source is None:
        raise InputError(
            "no data set is bound; pass a run file, e.g. --gin_file=gin/runs/digits_tiny_ar.gin"
        )
    if source.selector.endswith("mixture"):
        source = config.bound("mixture.sources")[0]
    size = config.bound(f"{source.selector}.image_size")
    return (size, size) if isinstance(size, int) else size


@gin.configurable
def source_image_size(*, source: Source) -> tuple[int, int]:
    """(H, W) of the images of a data set, which is opened."""
    return tuple(source.image_size)


def format_plan(plan: dict) -> str:
    """A plan as text for the terminal."""
    devices = plan["devices"]
    settings = [plan["without_remat"], plan["with_remat"]]
    rows = [
        [name.replace("_", " "), *(formatting.size(one["state_bytes"][name]) for one in settings)]
        for name in settings[0]["state_bytes"]
    ]
    rows += [
        [
            "activations per image",
            *(formatting.size(x["activation_bytes_per_image"]) for x in settings),
        ],
        ["largest batch that fits", *(f"{x['largest_batch']:,}" for x in settings)],
        [
            f"accumulation steps for batch size {plan['batch_size']:,}",
            *(x["gradient_accumulation_steps"] or "does not fit" for x in settings),
        ],
    ]
    for label, name in (("total", "total_bytes"), ("total by the compiler", "compiled_bytes")):
        if any(name in one for one in settings):
            totals = (one.get(name) for one in settings)
            rows.append([label, *(formatting.size(x) if x else "does not fit" for x in totals)])
    if devices["sharded"]:
        received = [formatting.size(x["bytes_received_per_step"]) for x in settings]
        rows.append(["received per device and step", *received])
    rows += [
        ["FLOPs per step", *(f"{x['flops_per_step']:.3g}" for x in settings)],
        ["time per step", *(formatting.duration(x["seconds_per_step"]) for x in settings)],
        [f"{plan['num_steps']:,} steps", *(formatting.duration(x["seconds"]) for x in settings)],
    ]
    count, memory = devices["count"], devices["memory"] / 1e9
    held = "divided over the devices" if devices["sharded"] else "whole on each device"
    return (
        f"{plan['parameters']:,} parameters, {plan['precision']}, on {count} x {memory:g} GB, "
        f"weights {held}\n"
        + formatting.table(["per device", "without remat", "with remat"], rows)
        + f"\nAssumed: {formatting.percent(RESERVED_FRACTION)} of the memory is reserved for the "
        f"runtime; training reaches {formatting.percent(devices['utilisation'])} of "
        f"{devices['flops']:.3g} FLOP/s per device."
    )
