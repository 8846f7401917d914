"""Compiles what a run does for an accelerator; reports memory, arithmetic and time."""

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

PROGRAMS = ("training", "sampling")
_MAX_COMPILATIONS = 6  # of a search for the largest batch


@gin.configurable
def compile_run(
    *,
    target: str,
    objective: Objective,
    build_model: Callable,
    batch_size: int,
    precision: str = "float32",
    gradient_accumulation_steps: int | None = None,
    image_size: tuple[int, int],
    program: str = "training",
    chips: int = 1,
    sharded: bool = False,
    remat: tuple[bool, ...] = (False, True),
    search_batch: bool = False,
    workdir: str | None = None,
    print_progress: Callable[[str], None] = print,
) -> list[dict]:
    """Compiles the training step of a run, with and without `remat`, or its sampling.

    Args:
        target: A name of `targets.names()`.
        objective: See `train`, as the following ones.
        build_model: Builds the model.
        batch_size: Images per step, of all chips; for sampling, images sampled together.
        precision: "float32" or "mixed_bfloat16".
        gradient_accumulation_steps: Number of microbatches of a training step; one device only.
        image_size: (H, W).
        program: "training" or "sampling", of new images on one device.
        chips: Number of devices.
        sharded: Whether weights and optimizer state are divided over the devices.
        remat: Settings of `build_model.remat`.
        search_batch: Whether to look for the largest batch that fits instead of `batch_size`.
        workdir: Folder for `compile_TARGET.json` and the modules as text; None for no file.
        print_progress: Receives a line before each compilation.

    Returns:
        A report per setting, see `describe`; one for sampling, see `describe_sampling`.

    Raises:
        InputError: An argument is out of range, or a package is missing.
    """
    device = targets.load(target)
    check_choice("train.precision", precision, PRECISIONS)
    check_choice("program", program, PROGRAMS)
    microbatches = gradient_accumulation_steps or 1
    if program == "sampling":
        microbatches, remat = 1, (False,)
    if chips > 1 and (microbatches > 1 or program == "sampling"):
        raise InputError(
            "sampling and gradient accumulation are compiled for one device. "
            f"Received: {chips=}, {program=}, {gradient_accumulation_steps=}"
        )
    if batch_size % (chips * microbatches):
        raise InputError(
            "the batch size must divide by the number of chips and of microbatches. "
            f"Received: {batch_size=}, {chips=}, gradient_accumulation_steps={microbatches}"
        )
    keras.config.set_dtype_policy(precision)
    reports = []
    for setting in remat:
        model = abstract_model(
            lambda setting=setting: build_model(
                image_size=image_size, causal=objective.causal, remat=setting
            )
        )

        described = _setting({} if program == "sampling" else {"remat": setting})

        def compile_batch(size, model=model, described=described):
            print_progress(f"compiling for {device.name}: batch size {size}, {described}")
            return _compile(program, device, model, objective, size, microbatches, chips, sharded)

        size, compiled = batch_size, None
        try:
            if search_batch:
                unit = chips * microbatches
                size, compiled = largest_batch(compile_batch, device, unit, batch_size)
            else:
                compiled = compile_batch(size)
            error = None
        except DoesNotFit as refusal:
            error = str(refusal)
        if workdir and compiled:
            kind = program if program == "sampling" else "remat" if setting else "no_remat"
            files.write_text(
                os.path.join(workdir, f"compile_{target}_{kind}.hlo.txt"), compiled.module
            )
        if program == "sampling":
            report = describe_sampling(device, model, compiled, size, precision, error)
        else:
            report = describe(device, model, compiled, size, precision, chips, microbatches, error)
        reports.append({"target": target, "program": program, "sharded": sharded, **report})
    if workdir:
        files.write_json(os.path.join(workdir, f"compile_{target}.json"), reports)
    return reports


def _compile(program, device, model, objective, size, microbatches, chips, sharded) -> Compiled:
    """Compiles one program of `compile_run`; imports only the framework that traces it."""
    if program == "sampling":
        from igpt_tf.ahead_of_time.sampling import compile_sampling

        return compile_sampling(device, model, size)
    if chips == 1:
        from igpt_tf.ahead_of_time.tensorflow_step import compile_step

        return compile_step(device, model, objective, size, microbatches)
    from igpt_tf.ahead_of_time.jax_step import compile_step

    return compile_step(device, model, objective, size, chips, sharded)


def usable_bytes(device: Target) -> float:
    """Memory of a device without the part that the runtime keeps."""
    return device.memory_bytes * (1 - RESERVED_FRACTION)


def largest_batch(
    compile_batch: Callable[[int], Compiled], device: Target, unit: int, first: int
) -> tuple[int, Compiled]:
    """The largest batch size that fits, and its program; above 8 per `unit`, a multiple of 8.

    `unit` is the number of chips times that of microbatches; the batch size divides by it. The
    memory of a program grows by nearly the same number of bytes per image: two programs give a
    guess, which is compiled too, and corrected.

    Raises:
        DoesNotFit: One image per chip and microbatch does not fit.
    """
    available, fits = usable_bytes(device), {}
    size, known = first, []
    for _ in range(_MAX_COMPILATIONS):
        try:
            compiled = compile_batch(size)
        except DoesNotFit:
            if size == unit:
                raise
            size = max(unit, size // 4 // unit * unit)
            continue
        known.append((size, compiled.peak_bytes))
        if compiled.peak_bytes <= available:
            fits[size] = compiled
        if len(known) == 1:
            size = size // 2 // unit * unit or 2 * size
            continue
        # Between programs that fit and one that does not, or beyond the two largest.
        pairs = sorted(known)
        num_fitting = sum(num_bytes <= available for _, num_bytes in pairs)
        second = min(max(1, num_fitting), len(pairs) - 1)
        (size_1, bytes_1), (size_2, bytes_2) = pairs[second - 1 : second + 1]
        per_image = (bytes_2 - bytes_1) / (size_2 - size_1)
        guess = int(size_2 + (available - bytes_2) / per_image) // unit
        guess = unit * (guess // 8 * 8 if guess > 8 else guess)
        if guess < unit or guess in dict(known):
            break
        size = guess
    if not fits:
        raise DoesNotFit(f"{unit} images need {formatting.size(min(known)[1])}")
    return max(fits.items())


def describe(
    device: Target,
    model: ImageGPT,
    compiled: Compiled | None,
    batch_size: int,
    precision: str,
    chips: int = 1,
    microbatches: int = 1,
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
        microbatches: Number of equal parts of a device's images, one after another.
        error: The compiler's words if it does not fit.

    Returns:
        JSON-able. Sizes are bytes, times seconds, all per device and step. "scores_bytes" are read
        and written for attention scores, arrays [images, heads, queries, keys].
        "roofline_seconds" adds, over the kernels, the longer of their arithmetic at peak and their
        memory traffic at full bandwidth; "utilisation" is the model's arithmetic in that time,
        relative to the peak. "estimated_seconds" is the sum of the compiler's estimates, of a TPU.
    """
    report = _report_head(device, model, batch_size, precision, error) | {
        "chips": chips,
        "microbatches": microbatches,
        "remat": model.remat,
        "model_flops": batch_size // chips * flops_per_image(model, remat=False),
    }
    if compiled is None:
        return report
    kernels = list(Module(compiled.module).kernels())
    report |= _measures(device, compiled, kernels, batch_size, precision)
    arrays = [(one.count, *pair) for one in kernels for pair in (*one.read, *one.written)]
    heads = model.num_heads
    rows = batch_size // chips // microbatches * heads
    scores = rows, model.hidden_dim // heads, model.sequence_length
    in_blocks = [one for one in kernels if one.depth > (microbatches > 1)]
    return report | {
        "bytes_moved_per_block": sum(x.count * x.num_bytes for x in in_blocks) / model.num_layers,
        "scores_bytes": sum(n * size for n, array, size in arrays if is_scores(array, *scores)),
        "utilisation": report["model_flops"] / device.flops[precision] / report["roofline_seconds"],
        "estimated_seconds": device.clock_hz
        and sum(one.count * one.cycles for one in kernels) / device.clock_hz,
    }


def describe_sampling(
    device: Target,
    model: ImageGPT,
    compiled: Compiled | None,
    num_images: int,
    precision: str,
    error: str | None = None,
) -> dict:
    """A report on the compiled sampling of `num_images` images.

    Returns:
        JSON-able, as that of `describe`, of all pixels of all images. "kernels_per_pixel" run one
        after another; "bytes_moved_per_image_and_pixel" includes an image's share of the weights.
    """
    report = _report_head(device, model, num_images, precision, error) | {"chips": 1}
    if compiled is None:
        return report
    kernels = list(Module(compiled.module).kernels())
    report |= _measures(device, compiled, kernels, num_images, precision)
    length = model.sequence_length
    return report | {
        "kernels_per_pixel": sum(one.count for one in kernels) / length,
        "bytes_moved_per_image_and_pixel": report["bytes_moved"] / num_images / length,
    }


def _report_head(device, model, batch_size, precision, error) -> dict:
    return {
        "device": device.name,
        "device_bytes": device.memory_bytes,
        "parameters": model.count_params(),
        "precision": precision,
        "batch_size": batch_size,
        "fits": False,
        "error": error,
    }


def _measures(device, compiled, kernels, batch_size, precision) -> dict:
    """What a compiled program needs: memory, arithmetic, memory traffic, and the time of both."""
    peak, bandwidth = device.flops[precision], device.bytes_per_second
    flops = sum(one.count * one.flops for one in kernels)
    moved = sum(one.count * one.num_bytes for one in kernels)
    roofline = sum(one.count * max(one.flops / peak, one.num_bytes / bandwidth) for one in kernels)
    return {
        "state_bytes": compiled.argument_bytes,
        "temporary_bytes": compiled.temporary_bytes + compiled.result_bytes,
        "peak_bytes": compiled.peak_bytes,
        "fits": compiled.peak_bytes <= usable_bytes(device),
        "compiled_flops": flops,
        "bytes_moved": moved,
        "compute_seconds": flops / peak,
        "memory_seconds": moved / bandwidth,
        "roofline_seconds": roofline,
        "images_per_second": batch_size / roofline,
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
    ("microbatches", "microbatches", "{:,}"),
    ("state", "state_bytes", "size"),
    ("temporaries", "temporary_bytes", "size"),
    ("total", "peak_bytes", "size"),
    ("fits", "fits", "yes or no"),
    ("model FLOPs", "model_flops", "{:.4g}"),
    ("compiled FLOPs", "compiled_flops", "{:.4g}"),
    ("bytes moved", "bytes_moved", "size"),
    ("of these, attention scores", "scores_bytes", "size"),
    ("bytes moved per block", "bytes_moved_per_block", "size"),
    ("bytes moved per image and pixel", "bytes_moved_per_image_and_pixel", "size"),
    ("kernels per pixel", "kernels_per_pixel", "{:,.0f}"),
    ("arithmetic at peak", "compute_seconds", "duration"),
    ("memory traffic at full bandwidth", "memory_seconds", "duration"),
    ("roofline time", "roofline_seconds", "duration"),
    ("the compiler's estimate", "estimated_seconds", "duration"),
    ("images/s at most", "images_per_second", "{:,.0f}"),
    ("utilisation at most", "utilisation", "percent"),
    ("compiled in", "compile_seconds", "duration"),
)


def format_reports(reports: list[dict]) -> str:
    """Reports on one run and target as text for the terminal."""
    first = reports[0]
    chips = f"{first['chips']} x " if first["chips"] > 1 else ""
    header = ["per device", *map(_setting, reports)]
    rows = [
        [name, *(_cell(x.get(key), form) for x in reports)]
        for name, key, form in _ROWS
        if any(x.get(key) is not None for x in reports)
    ]
    text = (
        f"{first['parameters']:,} parameters, {first['precision']}, {chips}{first['device']} "
        f"({formatting.size(first['device_bytes'])})\n{formatting.table(header, rows)}"
    )
    for one in reports:
        if one["error"]:
            text += f"\n{_setting(one).capitalize()}: {one['error']}"
    return text


def _setting(report: dict) -> str:
    if "remat" not in report:
        return "sampling"
    return "with remat" if report["remat"] else "without remat"


def _cell(value, form: str) -> str:
    if value is None:
        return ""
    if form == "yes or no":
        return "yes" if value else "no"
    if form in ("size", "duration", "percent"):
        return getattr(formatting, form)(value)
    return form.format(value)
