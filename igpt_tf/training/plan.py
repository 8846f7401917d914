"""What a run will take: parameters, arithmetic, memory and time, told without allocating anything.

The activation figures count tensors of T x D numbers, one of a position's width: those `KEPT` from
the forward to the backward pass, or kept by a run that recomputes its blocks (`RECOMPUTED`), and
those alive only while one block is at work (`WORKING_*`). They are fitted to what TensorFlow's CPU
executor holds at the height of a step; three models agree within 20 %, both ways
(tests/training/test_plan.py). Change a block, and measure again. XLA, on accelerators, orders the
work itself; there they have not been compared. On CPUs a step left to itself cuts its batch
(`StepOptions.accumulation`) and takes less.
"""

import dataclasses
import math
import time

import keras

from igpt_tf import formatting
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT

# Of each block, in T x D numbers an image.
KEPT = {
    "the inputs of the two norms": 2,
    "queries, keys and values": 3,
    "queries in blocks": 1,
    "the heads' outputs": 1,
    "the MLP's first product": 4,
}
RECOMPUTED = {"the block's input": 1}
# Of the one block at work, or of the head; the largest counts.
WORKING_MLP = 17  # T x D numbers: four tensors, each 4 D wide, and what is left of the norm
WORKING_HEADS = 4  # T x D numbers: gradients of queries, keys and values
WORKING_SQUARES = 4  # [heads,T/4,T] float32 of a block of queries: weights, slopes, two scores
QUERY_SHARE = 1 / 4  # of the square [T,T]: four blocks of queries, one after the other
WORKING_LOGITS = 3  # [T,V] float32: logits, probabilities, gradients
CAUSAL_SHARE = 5 / 8  # of the square [T,T]: each block of queries over its own prefix
RESERVE = 0.1  # of the device's memory: the runtime's own, workspaces, gaps between tensors

_BENCHMARK_SIDE = 2048
_BENCHMARK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Device:
    """Where the run is to go.

    Attributes:
        memory: Bytes on each device.
        flops: Floating-point operations per second of each device, at its best.
        utilisation: Share of `flops` that training is assumed to reach.
        replicas: Number of devices; each holds the whole model.

    Raises:
        InputError: A number is out of range.
    """

    memory: float
    flops: float
    utilisation: float = 0.4
    replicas: int = 1

    def __post_init__(self):
        if not (self.memory > 0 and self.flops > 0 and self.replicas >= 1):
            raise InputError(
                "memory and FLOP/s are above 0, replicas 1 or more. Received: "
                f"memory={self.memory:g}, flops={self.flops:g}, replicas={self.replicas}"
            )
        if not 0 < self.utilisation <= 1:
            raise InputError(f"a share lies in (0, 1]. Received: utilisation={self.utilisation}")


def plan(
    model: ImageGPT,
    optimizer: keras.optimizers.Optimizer,
    device: Device,
    *,
    batch_size: int,
    num_steps: int,
    precision: str = "float32",
) -> dict:
    """Plans a run.

    Args:
        model: An `abstract_model` will do.
        optimizer: Unbuilt.
        device: Where it is to go.
        batch_size: Global batch size in images.
        num_steps: Length of the run.
        precision: See `train`.

    Returns:
        JSON-able. Bytes and seconds; "kept" and "recomputed" tell a run that keeps its activations
        from one that recomputes them (`build_model.remat`). `accumulation` is None where the
        memory does not suffice for one image.

    Raises:
        InputError: The batch does not divide among the devices.
    """
    if batch_size % device.replicas:
        raise InputError(
            "the batch divides evenly among the devices. "
            f"Received: {batch_size=}, replicas={device.replicas}"
        )
    weights = fixed_bytes(model, optimizer, precision)
    ways = {
        way: _way(model, weights, device, batch_size, num_steps, precision, way == "recomputed")
        for way in ("kept", "recomputed")
    }
    return {
        "parameters": _count(model),
        "batch_size": batch_size,
        "num_steps": num_steps,
        "precision": precision,
        "device": {**dataclasses.asdict(device), "reserve": RESERVE},
        "bytes": weights,
        **ways,
    }


def _way(model, weights, device, batch_size, num_steps, precision, remat) -> dict:
    image = activation_bytes(model, precision, remat)
    room = device.memory * (1 - RESERVE) - sum(weights.values())
    share = batch_size // device.replicas
    flops = batch_size * image_flops(model, remat)
    seconds = flops / (device.flops * device.utilisation * device.replicas)
    return {
        "activation_bytes_an_image": image,
        "largest_batch": max(0, int(room // image)) * device.replicas,
        "gradient_accumulation_steps": _accumulation(share, image, room, weights["gradients"]),
        "flops_a_step": flops,
        "seconds_a_step": seconds,
        "seconds": seconds * num_steps,
    }


def _accumulation(share: int, image: float, room: float, gradients: int) -> int | None:
    """The fewest parts of equal size into which a device's share of the batch must be cut."""
    for parts in (number for number in range(1, share + 1) if share % number == 0):
        # The sum over the parts stays beside the gradients of the part at work.
        if image * share / parts + (gradients if parts > 1 else 0) <= room:
            return parts
    return None


def fixed_bytes(model: ImageGPT, optimizer: keras.optimizers.Optimizer, precision: str) -> dict:
    """Bytes on each device whatever the batch, by what they are for."""
    count = _count(model)
    matrices = sum(math.prod(weight.shape) for weight in model.weights if len(weight.shape) > 1)
    return {
        "weights": 4 * count,
        "weights_in_bfloat16": 2 * matrices if precision == "mixed_bfloat16" else 0,
        "gradients": 4 * count,
        "optimizer_state": 4 * count * _states_a_weight(optimizer),
    }


def activation_bytes(model: ImageGPT, precision: str, remat: bool) -> float:
    """Bytes an image at the height of a step."""
    size = 2 if precision == "mixed_bfloat16" else 4
    position = model.sequence_length * model.hidden_dim * size
    squares = 4 * model.num_heads * model.sequence_length**2 * QUERY_SHARE
    logits = 4 * model.sequence_length * model.vocabulary_size
    block = position * sum(KEPT.values())
    kept = block * model.num_layers
    if remat:
        kept = position * sum(RECOMPUTED.values()) * model.num_layers + block
    heads = position * WORKING_HEADS + squares * WORKING_SQUARES
    return kept + max(position * WORKING_MLP, heads, logits * WORKING_LOGITS)


def image_flops(model: ImageGPT, remat: bool) -> float:
    """Floating-point operations of one image's forward and backward pass.

    A multiplication and an addition are two; the backward pass takes twice the forward pass,
    recomputation the blocks' forward pass once more. Only matrix products count, and not those
    that a block repeats to save memory in any run: they are part of what utilisation loses.
    """
    length, dim = model.sequence_length, model.hidden_dim
    matrices = 2 * length * 12 * dim**2
    attention = 2 * 2 * dim * _visible_pairs(model)
    blocks = model.num_layers * (matrices + attention)
    logits = 2 * length * dim * model.vocabulary_size
    return 3 * (blocks + logits) + (blocks if remat else 0)


def measured_flops(precision: str = "float32") -> float:
    """Floating-point operations per second of this machine in matrix products; takes a second."""
    import tensorflow as tf

    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    x = tf.ones((_BENCHMARK_SIDE, _BENCHMARK_SIDE), dtype)
    tf.reduce_sum(x @ x).numpy()  # the first one sets up
    products, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _BENCHMARK_SECONDS:
        tf.reduce_sum(x @ x).numpy()
        products += 1
    return products * 2 * _BENCHMARK_SIDE**3 / elapsed


def _visible_pairs(model: ImageGPT) -> float:
    """Pairs of query and key that attention computes, of T^2."""
    return model.sequence_length**2 * (CAUSAL_SHARE if model.causal else 1)


def _count(model: ImageGPT) -> int:
    return sum(math.prod(weight.shape) for weight in model.weights)


def _states_a_weight(optimizer: keras.optimizers.Optimizer) -> int:
    """How many numbers the optimizer keeps for each weight, seen on a weight of four."""
    weight = keras.Variable([[0.0] * 4])
    optimizer.build([weight])
    return sum(variable.shape == weight.shape for variable in optimizer.variables)


def summary(result: dict, *, flops_are_measured: bool) -> str:
    """A plan for the terminal."""
    device, sizes = result["device"], result["bytes"]
    ways = [result["kept"], result["recomputed"]]
    batch_size, num_steps = result["batch_size"], result["num_steps"]
    rows = [[name.replace("_", " "), *[_gb(size)] * 2] for name, size in sizes.items() if size]
    rows += [
        ["activations, an image", *(_gb(way["activation_bytes_an_image"]) for way in ways)],
        ["largest batch that fits", *(f"{way['largest_batch']:,}" for way in ways)],
        [
            f"accumulation for a batch of {batch_size:,}",
            *(way["gradient_accumulation_steps"] or "does not fit" for way in ways),
        ],
        ["FLOPs a step", *(f"{way['flops_a_step']:.3g}" for way in ways)],
        ["a step", *(_duration(way["seconds_a_step"]) for way in ways)],
        [f"{num_steps:,} steps", *(_duration(way["seconds"]) for way in ways)],
    ]
    return (
        f"{result['parameters']:,} parameters, {result['precision']}\n"
        + formatting.table(["", "activations kept", "recomputed"], rows)
        + f"\nassumed: {device['replicas']} x {device['memory'] / 1e9:g} GB of which "
        f"{formatting.percent(RESERVE)} are left to the runtime; "
        f"{'measured' if flops_are_measured else 'given'} {device['flops']:.3g} FLOP/s each, "
        f"{formatting.percent(device['utilisation'])} of it reached"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3f} GB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.3g} s"
