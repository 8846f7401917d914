"""Compiles the training step of a run for an accelerator; reports memory, arithmetic and time."""

import itertools
import math
import os
from collections.abc import Callable

import gin
import keras

from igpt_tf import files, formatting
from igpt_tf.ahead_of_time import targets
from igpt_tf.ahead_of_time.compilers import Compiled, DoesNotFit
from igpt_tf.ahead_of_time.hlo import Array, Module
from igpt_tf.ahead_of_time.targets import Target
from igpt_tf.errors import InputError, check_choice
from igpt_tf.model import ImageGPT, abstract_model
from igpt_tf.objectives import Objective
from igpt_tf.training.plan import PRECISIONS, RESERVED_FRACTION, flops_per_image

_MAX_COMPILATIONS = 6  # of a search for the largest batch


@gin.configurable
def compile_run(
    *,
    target: str,
    objective: Objective,
    build_model: Callable,
    batch_size: int,
    precision: str = "float32",
    image_size: tuple[int, int],
    chips: int = 1,
    sharded: bool = False,
    remat: tuple[bool, ...] = (False, True),
    search_batch: bool = False,
    workdir: str | None = None,
    print_progress: Callable[[str], None] = print,
) -> list[dict]:
    """Compiles the training step of a run, with and without `remat`.

    Args:
        target: A name of `targets.names()`.
        objective: See `train`, as the following ones.
        build_model: Builds the model.
        batch_size: Images per step, of all chips.
        precision: "float32" or "mixed_bfloat16".
        image_size: (H, W).
        chips: Number of devices.
        sharded: Whether weights and optimizer state are divided over the devices.
        remat: Settings of `build_model.remat`.
        search_batch: Whether to look for the largest batch that fits instead of `batch_size`.
        workdir: Folder for `compile_TARGET.json` and the modules as text; None for no file.
        print_progress: Receives a line before each compilation.

    Returns:
        A report per setting, see `describe`.

    Raises:
        InputError: An argument is out of range, or a package is missing.
    """
    device = targets.load(target)
    check_choice("train.precision", precision, PRECISIONS)
    if batch_size % chips:
        raise InputError(
            f"the batch size must divide by the number of chips. Received: {batch_size=}, {chips=}"
        )
    keras.config.set_dtype_policy(precision)
    if keras.backend.backend() == "tensorflow":
        from igpt_tf.ahead_of_time import tensorflow_step as step
    else:
        from igpt_tf.ahead_of_time import jax_step as step

    reports = []
    for setting in remat:
        model = abstract_model(
            lambda setting=setting: build_model(
                image_size=image_size, causal=objective.causal, remat=setting
            )
        )

        def compile_batch(size, model=model):
            print_progress(
                f"compiling for {device.name}: batch size {size}, "
                f"{'with' if model.remat else 'without'} remat"
            )
            return step.compile_step(device, model, objective, size, chips, sharded)

        size, compiled = batch_size, None
        try:
            if search_batch:
                size, compiled = largest_batch(compile_batch, device, chips, batch_size)
            else:
                compiled = compile_batch(size)
            error = None
        except DoesNotFit as refusal:
            error = str(refusal)
        report = describe(device, model, compiled, size, precision, chips, error)
        reports.append({"target": target, "sharded": sharded, **report})
        if workdir and compiled:
            name = f"compile_{target}_{'remat' if setting else 'no_remat'}.hlo.txt"
            files.write_text(os.path.join(workdir, name), compiled.module)
    if workdir:
        files.write_json(os.path.join(workdir, f"compile_{target}.json"), reports)
    return reports


def usable_bytes(device: Target) -> float:
    """Memory of a device without the part that the runtime keeps."""
    return device.memory_bytes * (1 - RESERVED_FRACTION)


def largest_batch(
    compile_batch: Callable[[int], Compiled], device: Target, chips: int, first: int
) -> tuple[int, Compiled]:
    """The largest batch size that fits, and its program; above 8 per chip, a multiple of 8.

    The memory of a program grows by nearly the same number of bytes per image: two programs give a
    guess, which is compiled too, and corrected.

    Raises:
        DoesNotFit: One image per chip does not fit.
    """
    available, fits = usable_bytes(device), {}
    size, known = first, []
    for _ in range(_MAX_COMPILATIONS):
        try:
            compiled = compile_batch(size)
        except DoesNotFit:
            if size == chips:
                raise
            size = max(chips, size // 4 // chips * chips)
            continue
        known.append((size, compiled.peak_bytes))
        if compiled.peak_bytes <= available:
            fits[size] = compiled
        if len(known) == 1:
            size = size // 2 // chips * chips or 2 * size
            continue
        # Between programs that fit and one that does not, or beyond the two largest.
        pairs = sorted(known)
        num_fitting = sum(num_bytes <= available for _, num_bytes in pairs)
        second = min(max(1, num_fitting), len(pairs) - 1)
        (size_1, bytes_1), (size_2, bytes_2) = pairs[second - 1 : second + 1]
        per_image = (bytes_2 - bytes_1) / (size_2 - size_1)
        guess = int(size_2 + (available - bytes_2) / per_image) // chips
        guess = chips * (guess // 8 * 8 if guess > 8 else guess)
        if guess < chips or guess in dict(known):
            break
        size = guess
    if not fits:
        raise DoesNotFit(f"{chips} images need {formatting.size(min(known)[1])}")
    return max(fits.items())


def describe(
    device: Target,
    model: ImageGPT,
    compiled: Compiled | None,
    batch_size: int,
    precision: str,
    chips: int = 1,
    error: str | None = None,
) -> dict:
    """A report on a compiled training step.

    Args:
        device: The device.
        model: The model.
        compiled: The program, None if it does not fit.
        batch_size: Images per step, of all chips.
        precision: "float32" or "mixed_bfloat16".
        chips: Number of devices.
        error: The compiler's words if it does not fit.

    Returns:
        JSON-able. Sizes are bytes, times seconds, all per device and step. "scores_bytes" are read
        and written for attention scores, arrays [images, heads, queries, keys].
        "roofline_seconds" adds, over the kernels, the longer of their arithmetic at peak and their
        memory traffic at full bandwidth; "utilisation" is the model's arithmetic in that time,
        relative to the peak. "estimated_seconds" is the sum of the compiler's estimates, of a TPU.
    """
    report = {
        "device": device.name,
        "chips": chips,
        "parameters": model.count_params(),
        "precision": precision,
        "remat": model.remat,
        "batch_size": batch_size,
        "device_bytes": device.memory_bytes,
        "model_flops": batch_size // chips * flops_per_image(model, remat=False),
        "error": error,
    }
    if compiled is None:
        return report
    kernels = list(Module(compiled.module, trip_count=model.num_layers).kernels())
    peak, bandwidth = device.flops[precision], device.bytes_per_second
    roofline = sum(one.count * max(one.flops / peak, one.num_bytes / bandwidth) for one in kernels)
    arrays = [(one.count, *pair) for one in kernels for pair in (*one.read, *one.written)]
    heads = model.num_heads
    scores = batch_size // chips * heads, model.hidden_dim // heads, model.sequence_length
    in_loop = [one for one in kernels if one.in_loop]
    return report | {
        "state_bytes": compiled.argument_bytes,
        "temporary_bytes": compiled.temporary_bytes + compiled.result_bytes,
        "peak_bytes": compiled.peak_bytes,
        "fits": compiled.peak_bytes <= usable_bytes(device),
        "compiled_flops": sum(one.count * one.flops for one in kernels),
        "bytes_moved": sum(one.count * one.num_bytes for one in kernels),
        "bytes_moved_per_block": sum(x.count * x.num_bytes for x in in_loop) / model.num_layers,
        "scores_bytes": sum(n * size for n, array, size in arrays if is_scores(array, *scores)),
        "compute_seconds": sum(one.count * one.flops for one in kernels) / peak,
        "memory_seconds": sum(one.count * one.num_bytes for one in kernels) / bandwidth,
        "roofline_seconds": roofline,
        "images_per_second": batch_size / roofline,
        "utilisation": report["model_flops"] / peak / roofline,
        "estimated_seconds": device.clock_hz
        and sum(one.count * one.cycles for one in kernels) / device.clock_hz,
        "compile_seconds": compiled.seconds,
    }


def is_scores(array: Array, rows: int, head_dim: int, length: int) -> bool:
    """Whether an array has a number for each query of a block and each key that it attends to.

    Args:
        array: An array of a module.
        rows: Images times heads.
        head_dim: Width of a head, less than the size of a block of queries.
        length: Sequence length T.
    """
    total = math.prod(array.dims)
    return array.dtype != "pred" and any(
        total == rows * one * other and head_dim < min(one, other) and max(one, other) <= length
        for one, other in itertools.combinations(array.dims, 2)
    )


_ROWS = (
    ("batch size", "batch_size", "{:,}"),
    ("state", "state_bytes", "size"),
    ("temporaries", "temporary_bytes", "size"),
    ("total", "peak_bytes", "size"),
    ("model FLOPs per step", "model_flops", "{:.4g}"),
    ("compiled FLOPs per step", "compiled_flops", "{:.4g}"),
    ("bytes moved per step", "bytes_moved", "size"),
    ("of these, attention scores", "scores_bytes", "size"),
    ("bytes moved per block", "bytes_moved_per_block", "size"),
    ("arithmetic at peak", "compute_seconds", "duration"),
    ("memory traffic at full bandwidth", "memory_seconds", "duration"),
    ("roofline time per step", "roofline_seconds", "duration"),
    ("the compiler's estimate", "estimated_seconds", "duration"),
    ("images/s at most", "images_per_second", "{:,.0f}"),
    ("utilisation at most", "utilisation", "percent"),
    ("compiled in", "compile_seconds", "duration"),
)


def format_reports(reports: list[dict]) -> str:
    """Reports on one run and target as text for the terminal."""
    first = reports[0]
    chips = f"{first['chips']} x " if first["chips"] > 1 else ""
    header = ["per device", *(f"{'with' if x['remat'] else 'without'} remat" for x in reports)]
    rows = [
        [name, *(_cell(x.get(key), form) for x in reports)]
        for name, key, form in _ROWS
        if any(x.get(key) for x in reports)
    ]
    rows.insert(4, ["fits", *("yes" if x.get("fits") else "no" for x in reports)])
    text = (
        f"{first['parameters']:,} parameters, {first['precision']}, {chips}{first['device']} "
        f"({formatting.size(first['device_bytes'])})\n{formatting.table(header, rows)}"
    )
    for one in reports:
        if one["error"]:
            text += f"\n{'With' if one['remat'] else 'Without'} remat: {one['error']}"
    return text


def _cell(value, form: str) -> str:
    if value is None:
        return ""
    if form in ("size", "duration", "percent"):
        return getattr(formatting, form)(value)
    return form.format(value)
