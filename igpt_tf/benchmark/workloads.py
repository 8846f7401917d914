"""What is measured: sizes of models, their arithmetic, the parts of the benchmark, their inputs."""

import dataclasses

import numpy as np

from igpt_tf.errors import InputError

VOCABULARY_SIZE = 512
_PHOTO_SIZE, _PHOTO_BATCH = 32, 100
_ON_JAX = ("train", "features", "matmul")  # tasks that Keras' JAX backend can run


@dataclasses.dataclass(frozen=True)
class Shape:
    """A causal model and its batch.

    Attributes:
        num_layers: Number of blocks L.
        hidden_dim: Width D.
        num_heads: Number of attention heads.
        side: Height and width of the images, so that T = side^2.
        batch_size: Images per batch B.
    """

    num_layers: int
    hidden_dim: int
    num_heads: int
    side: int
    batch_size: int

    @property
    def sequence_length(self) -> int:
        """Tokens per image T."""
        return self.side**2

    @property
    def architecture(self) -> dict:
        """Sizes of the model as arguments of `ImageGPT`."""
        return {
            "image_size": (self.side, self.side),
            "vocabulary_size": VOCABULARY_SIZE,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
        }

    def forward_flops(self) -> int:
        """FLOPs of the matrix products of a forward pass; a multiply-add counts as two.

        Attention counts the T (T + 1) / 2 pairs of a causal model; what an implementation computes
        beyond them does not count.
        """
        length, dim = self.sequence_length, self.hidden_dim
        matrices = 12 * self.num_layers * dim**2 + VOCABULARY_SIZE * dim
        attention = 2 * self.num_layers * dim * (length * (length + 1) // 2)
        return 2 * self.batch_size * (length * matrices + attention)

    def train_flops(self) -> int:
        """FLOPs of a training step: the backward pass has two products per product of forward."""
        return 3 * self.forward_flops()


# Named by size where the model is not one of the paper's; gin/models has others.
WIDTH256 = Shape(num_layers=8, hidden_dim=256, num_heads=8, side=16, batch_size=16)
S = Shape(num_layers=24, hidden_dim=512, num_heads=8, side=32, batch_size=2)
M = Shape(num_layers=36, hidden_dim=1024, num_heads=8, side=32, batch_size=2)
L = Shape(num_layers=48, hidden_dim=1536, num_heads=16, side=32, batch_size=2)
SMALLEST = Shape(num_layers=2, hidden_dim=16, num_heads=2, side=4, batch_size=2)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the benchmark: one task that several implementations run.

    Attributes:
        title: Title in the table.
        task: Name of the function that each implementation's module provides.
        implementations: Names, see `worker.MODULES`; the first is the reference of the ratios.
        unit: What is counted.
        units: Number of units per run of the task.
        shape: The model, or None if the task has none.
        flops: Model FLOPs per run, 0 if they are not of interest.
        is_long: Whether a third of the repeats suffices.
        num_process_sets: Number of sets of processes that share the repeats: where the memory of a
            process lies changes its speed, and stays the same as long as it runs.
    """

    title: str
    task: str
    implementations: tuple[str, ...]
    unit: str
    units: int
    shape: Shape | None = None
    flops: int = 0
    is_long: bool = False
    num_process_sets: int = 1


def _train(title: str, shape: Shape, *implementations: str, is_long: bool = True) -> Part:
    return Part(
        f"training step, {title}",
        "train",
        implementations,
        "token",
        shape.batch_size * shape.sequence_length,
        shape,
        shape.train_flops(),
        is_long,
        num_process_sets=1 if is_long else 3,
    )


def _features(title: str, shape: Shape) -> Part:
    names = ("igpt_tf", "torch_gpt", "huggingface")
    title, flops = f"features of all layers, {title}", shape.forward_flops()
    return Part(title, "features", names, "image", shape.batch_size, shape, flops)


def _sample(title: str, shape: Shape) -> Part:
    names = ("igpt_tf", "igpt_tf_jit", "huggingface", "openai_graph")
    return Part(f"sampling, {title}", "sample", names, "image", shape.batch_size, shape, 0, True)


def _matmul(size: int) -> Part:
    title, names = f"matrix product, {size}x{size}", ("igpt_tf", "torch_gpt")
    return Part(title, "matmul", names, "row", size, flops=2 * size**3)


def _scaling(side: int, batch_size: int) -> Part:
    shape = dataclasses.replace(WIDTH256, side=side, batch_size=batch_size)
    return _train(f"width 256, {side}x{side}", shape, "igpt_tf")


_ALL = ("igpt_tf", "torch_gpt", "huggingface")
_TITLE256 = "8 layers of width 256, 16x16"
PARTS = {
    "peak": _matmul(2048),
    "peak_large": _matmul(8192),
    "train_width256": _train(_TITLE256, WIDTH256, *_ALL, is_long=False),
    "train_s": _train("iGPT-S", S, "igpt_tf", "igpt_tf_remat", "torch_gpt", "huggingface"),
    "features": _features(_TITLE256, dataclasses.replace(WIDTH256, batch_size=100)),
    "sampling": _sample(_TITLE256, WIDTH256),
    "palette": Part("palette, 32x32", "palette", ("igpt_tf", "huggingface"), "image", 500),
    "startup": Part("start to first step", "startup", ("igpt_tf",), "start", 1, is_long=True),
    "scaling_16": _scaling(16, 16),
    "scaling_32": _scaling(32, 4),
    "scaling_48": _scaling(48, 2),
    "scaling_64": _scaling(64, 2),
    "train_m": _train("iGPT-M", M, "igpt_tf"),
    "train_l": _train("iGPT-L", L, "igpt_tf"),
    "train_smallest": _train("smallest", SMALLEST, *_ALL, is_long=False),
    "features_smallest": _features("smallest", SMALLEST),
    "sampling_smallest": _sample("smallest", SMALLEST),
}
GROUPS = {
    "default": ["peak", "train_width256", "train_s", "features", "sampling", "palette", "startup"],
    "scaling": ["scaling_16", "scaling_32", "scaling_48", "scaling_64"],
}


def select_parts(names: list[str], backend: str, batch_size: int | None = None) -> dict[str, Part]:
    """Parts by name.

    Args:
        names: Names of `PARTS` or `GROUPS`.
        backend: Backend of Keras, "tensorflow" or "jax".
        batch_size: Batch size of every model; None for each part's own.

    Raises:
        InputError: A name is unknown, or a part does not run on the backend.
    """
    names = [name for given in names for name in GROUPS.get(given, [given])]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise InputError(
            f"the parts of the benchmark are {', '.join([*GROUPS, *PARTS])}. "
            f"Received: parts={','.join(unknown)}"
        )
    parts = {name: PARTS[name] for name in names}
    if batch_size is not None:
        parts = {name: _with_batch_size(part, batch_size) for name, part in parts.items()}
    absent = [name for name, part in parts.items() if part.task not in _ON_JAX]
    if backend == "jax" and absent:
        raise InputError(
            f"{', '.join(absent)} can be measured with --backend=tensorflow only. "
            f"Received: backend={backend}"
        )
    return parts


def _with_batch_size(part: Part, batch_size: int) -> Part:
    if part.shape is None:
        return part
    factor = batch_size / part.shape.batch_size
    return dataclasses.replace(
        part,
        shape=dataclasses.replace(part.shape, batch_size=batch_size),
        units=round(part.units * factor),
        flops=round(part.flops * factor),
    )


def random_tokens(shape: Shape) -> np.ndarray:
    """Tokens int32[B,T] that every implementation is given."""
    size = (shape.batch_size, shape.sequence_length)
    return np.random.default_rng(0).integers(0, VOCABULARY_SIZE, size, "int32")


def random_palette() -> np.ndarray:
    """Colours float32[V,3] in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (VOCABULARY_SIZE, 3)).astype("float32")


def photo_batches(num_images: int) -> list[np.ndarray]:
    """Pieces of the two photographs of scikit-learn in batches of at most 100.

    Args:
        num_images: At most 520.

    Returns:
        Arrays uint8[B,32,32,3].
    """
    from sklearn.datasets import load_sample_images

    pieces = np.concatenate([_pieces(image) for image in load_sample_images().images])
    pieces = np.random.default_rng(0).permutation(pieces)[:num_images]
    return np.array_split(pieces, -(-num_images // _PHOTO_BATCH))


def _pieces(image: np.ndarray) -> np.ndarray:
    """uint8[H,W,3] -> uint8[N,32,32,3]."""
    size = _PHOTO_SIZE
    rows, columns = image.shape[0] // size, image.shape[1] // size
    image = image[: rows * size, : columns * size]
    return image.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
