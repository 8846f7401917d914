"""What is measured: each part is a task, a size, and the rivals that take turns at it."""

import dataclasses

from igpt_tf.benchmark import shapes
from igpt_tf.errors import InputError

_EVERYONE = ("ours", "gpt", "huggingface")


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to measure.

    Attributes:
        title: For people.
        task: What each rival is asked for: a function of its module.
        rivals: Who takes turns; the first is ours.
        unit: What is counted.
        units: How many of them a turn does.
        shape: The model, if it takes one.
        flops: Model FLOPs of a turn, 0 if they are not the point.
        heavy: Whether turns are so long that a third of them has to do.
        sittings: Sets of processes that share the turns, one set after the other: a process keeps
            the luck it has with the places of its memory.
    """

    title: str
    task: str
    rivals: tuple[str, ...]
    unit: str
    units: int
    shape: shapes.Shape | None = None
    flops: int = 0
    heavy: bool = False
    sittings: int = 1


def _train(name: str, shape: shapes.Shape, rivals=_EVERYONE, heavy=False) -> Part:
    title = f"train step, {name}"
    flops, sittings = shape.train_flops(), 1 if heavy else 3
    return Part(title, "train", rivals, "token", shape.num_tokens, shape, flops, heavy, sittings)


def _features(name: str, shape: shapes.Shape) -> Part:
    title = f"features of all layers, {name}"
    flops = shape.forward_flops()
    return Part(title, "features", _EVERYONE, "image", shape.batch_size, shape, flops)


def _sample(name: str, shape: shapes.Shape) -> Part:
    rivals = ("ours", "ours_jit", "huggingface", "openai_graph")
    return Part(f"sampling, {name}", "sample", rivals, "image", shape.batch_size, shape, heavy=True)


def _peak(size: int) -> Part:
    title = f"matrix product, {size}x{size}"
    return Part(title, "matmul", ("ours", "gpt"), "row", size, flops=2 * size**3)


_WITH_RECOMPUTE = ("ours", "ours_recompute", "gpt", "huggingface")
_LARGE = ("ours",)
_HUNDRED = dataclasses.replace(shapes.NANO, batch_size=100)

PARTS = {
    "peak": _peak(2048),
    "peak_large": _peak(8192),
    "train_nano": _train("nano", shapes.NANO),
    "train_s": _train("iGPT-S", shapes.S, _WITH_RECOMPUTE, heavy=True),
    "features": _features("nano", _HUNDRED),
    "sampling": _sample("nano", shapes.NANO),
    "palette": Part("palette encode, 32x32", "palette", ("ours", "huggingface"), "image", 500),
    "startup": Part("start to first step, digits", "startup", ("ours",), "start", 1, heavy=True),
    "train_m": _train("iGPT-M", shapes.M, _LARGE, heavy=True),
    "train_l": _train("iGPT-L", shapes.L, _LARGE, heavy=True),
    "train_tiny": _train("tiny", shapes.TINY),
    "features_tiny": _features("tiny", shapes.TINY),
    "sampling_tiny": _sample("tiny", shapes.TINY),
}
DEFAULT_PARTS = ("peak", "train_nano", "train_s", "features", "sampling", "palette", "startup")


def chosen(names: list[str], batch_size: int | None = None) -> dict[str, Part]:
    """Parts by name, perhaps with another batch size. Raises: InputError on an unknown name."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise InputError(
            f"parts of the benchmark are {', '.join(PARTS)}. Received: parts={','.join(unknown)}"
        )
    parts = {name: PARTS[name] for name in names}
    if batch_size is None:
        return parts
    return {name: _resized(part, batch_size) for name, part in parts.items()}


def _resized(part: Part, batch_size: int) -> Part:
    if part.shape is None:
        return part
    factor = batch_size / part.shape.batch_size
    return dataclasses.replace(
        part,
        shape=dataclasses.replace(part.shape, batch_size=batch_size),
        units=round(part.units * factor),
        flops=round(part.flops * factor),
    )
