"""Times training steps of the paper's models on a GPU: Keras on JAX, mixed bfloat16.

The program is the one of `tools.compile --chips`: blocks in a loop over stacked weights, Adam on
donated state. docs/accelerators.md has the results.

    KERAS_BACKEND=jax python docs/experiments/step_time.py --out=out/step_time.json
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import keras

from igpt_tf.ahead_of_time.jax_step import divide_weights, training_step
from igpt_tf.model import ImageGPT, attention
from igpt_tf.model.image_gpt import abstract_model
from igpt_tf.objectives import Autoregressive

START = time.time()
NUM_STEPS = 10
RATE = 1e-4
MODELS = {  # layers, width, heads, side of the image
    "nano 28x28": (8, 128, 4, 28),
    "nano": (8, 128, 4, 32),
    "S": (24, 512, 8, 32),
    "M": (36, 1024, 8, 32),
    "L": (48, 1536, 16, 32),
    "XL": (60, 3072, 16, 64),
}


@dataclass(frozen=True)
class Case:
    """One row: a model, images per step, recomputation, and cuDNN's attention instead of ours."""

    model: str
    batch_size: int
    remat: bool = False
    cudnn: bool = False


CASES = [
    Case("S", 32),
    Case("S", 32, cudnn=True),
    Case("L", 16, remat=True),
    Case("XL", 2, remat=True),
    Case("M", 32),
    Case("L", 16),
    Case("L", 16, cudnn=True),
    Case("M", 32, cudnn=True),
    Case("nano 28x28", 64),
    Case("nano", 64),
    Case("M", 32, remat=True),
    Case("S", 16),
    Case("nano", 64, cudnn=True),
]


def cudnn_attention(query, key, value, *, causal: bool):
    """As `attention.attend`, by cuDNN's fused kernels, which keep no scores."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    heads = jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, implementation="cudnn"
    )
    return heads.reshape(*heads.shape[:2], -1)


def initial_weights(model: ImageGPT, shapes: Sequence) -> list:
    """Random weights for `training_step`: those outside of the blocks, then the stacks."""
    others, stacks = divide_weights(model)
    variables = [*others, *stacks]
    return [
        jax.jit(lambda v=v, shape=shape: v._initializer(shape.shape, dtype="float32"))()
        for v, shape in zip(variables, shapes, strict=True)
    ]


def measure(case: Case) -> dict:
    """Compiles and runs the step on one batch of random tokens."""
    layers, width, heads, side = MODELS[case.model]
    sizes = {"num_layers": layers, "hidden_dim": width, "num_heads": heads}
    model = abstract_model(
        lambda: ImageGPT(image_size=(side, side), vocabulary_size=512, remat=case.remat, **sizes)
    )
    ours, attention.attend = attention.attend, cudnn_attention if case.cudnn else attention.attend
    try:
        step, arguments = training_step(jax.devices()[:1], model, Autoregressive(), case.batch_size)
        start = time.time()
        step = step.lower(*arguments).compile()
    finally:
        attention.attend = ours
    compilation = time.time() - start
    memory = step.memory_analysis()
    shape = arguments[0]["tokens"].shape
    batch = {"tokens": jax.random.randint(jax.random.key(0), shape, 0, 512, dtype="int32")}
    weights = initial_weights(model, arguments[2])
    means, squares = ([jnp.zeros_like(one) for one in weights] for _ in range(2))
    losses, seconds = [], []
    for _ in range(NUM_STEPS):
        start = time.perf_counter()
        loss, weights, means, squares = step(batch, jnp.float32(RATE), weights, means, squares)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
    num_weights = sum(math.prod(one.shape) for one in weights)
    median = statistics.median(seconds[2:])
    return {
        **asdict(case),
        "weights": num_weights,
        "seconds_per_step": median,
        "fastest": min(seconds),
        "images_per_second": case.batch_size / median,
        "model_tflops_per_second": model_flops(case, width, layers, side) / median / 1e12,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "seconds_of_compilation": compilation,
        "losses": losses,
    }


def model_flops(case: Case, width: int, layers: int, side: int) -> float:
    """Products of a step, attention for the pairs of a causal model; without recomputation."""
    length = side * side
    dense = 2 * length * (12 * width**2 * layers + 512 * width)
    pairs = length * (length + 1) / 2
    return 3 * case.batch_size * (dense + layers * 4 * pairs * width)


def main():
    """Measures every case for which there is time; a case that fails leaves its message."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", required=True, help="File of the results, JSON.")
    parser.add_argument("--seconds", type=float, default=420, help="No case starts after these.")
    parser.add_argument("--cases", help="Indices of the cases, e.g. 0,3; all of them if missing.")
    flags = parser.parse_args()
    keras.config.set_dtype_policy("mixed_bfloat16")
    os.makedirs(os.path.dirname(flags.out) or ".", exist_ok=True)
    chosen = map(int, flags.cases.split(",")) if flags.cases else range(len(CASES))
    rows = []
    for case in [CASES[index] for index in chosen]:
        if time.time() - START > flags.seconds:
            print(f"left out for lack of time: {case}", flush=True)
            continue
        try:
            rows.append(measure(case))
        except Exception as error:  # the other cases shall run
            rows.append({**asdict(case), "error": str(error).split("\n")[0][:300]})
        shown = {k: v for k, v in rows[-1].items() if k != "losses"}
        print(f"{time.time() - START:5.0f} s {shown} {rows[-1].get('losses', [])[:1]}", flush=True)
        with open(flags.out, "w") as f:
            json.dump({"device": jax.devices()[0].device_kind, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
