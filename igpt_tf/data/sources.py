"""`Source`, a data set in splits; the registry of sources; what several sources share."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import math
import os

import gin
import numpy as np

from igpt_tf.data.decoding import size_pair
from igpt_tf.data.examples import ArrayExamples, Examples
from igpt_tf.errors import InputError

_SOURCES = {}
_CHUNK = 256  # images resized at once
_MAX_CLASSES = 2**20


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set in three splits, which share no image.

    Attributes:
        train, valid: Examples for training and held-out ones.
        test: Examples, or None if the data set has none.
        class_names: One name per label, or None without labels.
        name, arguments, module: The registered function that made it, its arguments, and the
            module of that function; set by `register`.
    """

    train: Examples
    valid: Examples
    test: Examples | None
    class_names: tuple[str, ...] | None
    name: str = ""
    arguments: dict = dataclasses.field(default_factory=dict)
    module: str = ""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.train.image_size

    @property
    def description(self) -> dict:
        """{"name", "arguments", "module"}, JSON-able: `source_from_description` reads it."""
        return {"name": self.name, "arguments": self.arguments, "module": self.module}

    def fingerprint(self) -> str:
        """Hex digest of the images of all splits. Raises: InputError."""
        splits = (self.train, self.valid, self.test)
        digests = [split and split.fingerprint() for split in splits]
        return hashlib.sha256(str(digests).encode()).hexdigest()


def register(build):
    """Registers a function that builds a `Source`, with gin and by its name.

    The function has keyword arguments only, of JSON-able types. The source records its name,
    arguments and module, so that tools can build it again from a SavedModel's metadata.

    Example:
        @register
        def noise(*, num_images: int, seed: int = 0) -> Source:
            images = np.random.default_rng(seed).integers(0, 256, [num_images, 8, 8, 3], "uint8")
            return Source(*heldout_split(ArrayExamples(images), 0.1, seed), None, None)
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def source(**arguments):
        bound = signature.bind(**arguments)
        bound.apply_defaults()
        recorded = {name: _as_json(value) for name, value in bound.arguments.items()}
        return dataclasses.replace(
            build(**arguments), name=build.__name__, arguments=recorded, module=build.__module__
        )

    _SOURCES[build.__name__] = source
    return gin.register(source)


def source_from_description(description: dict) -> Source:
    """Builds a source again. A source of another package is imported from its module first.

    Args:
        description: `Source.description`.

    Raises:
        InputError: There is no such source, it takes other arguments, or its data are missing.
    """
    name, module = description.get("name"), description.get("module", "")
    if name not in _SOURCES and module and module.split(".")[0] != __name__.split(".")[0]:
        try:
            with gin.unlock_config():  # a tool has parsed its flags, which locks gin
                importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"the data set {name!r} is defined in the module {module!r}, which cannot be "
                f"imported ({error}); start the command in the folder of that module, or set "
                f"PYTHONPATH to it. Received: module={module}"
            ) from None
    if name not in _SOURCES:
        raise InputError(
            f"no such data set; there are {', '.join(sorted(_SOURCES))}. For one of your own, "
            f"import its module: --gin_param='import MODULE'. Received: name={name!r}"
        )
    arguments = description.get("arguments", {})
    try:
        inspect.signature(_SOURCES[name]).bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"the data set {name!r} takes other arguments ({error}). Received: {arguments=}"
        ) from None
    return _SOURCES[name](**arguments)


def heldout_split(examples: Examples, heldout: float, seed: int) -> tuple[Examples, Examples]:
    """(train, valid): a seeded random fraction `heldout` of `examples` becomes `valid`.

    Raises:
        InputError: `heldout` leaves either split empty.
    """
    size = len(examples)
    num_heldout = math.ceil(round(size * heldout, 6))
    if not 0 < heldout < 1 or num_heldout >= size:
        raise InputError(
            "the held-out fraction must be between 0 and 1 and leave images in both splits; change "
            f"it, or use more images. Received: heldout={heldout}, images={size}"
        )
    # RandomState, whose stream NumPy has frozen: the split is the same in later versions.
    order = np.random.RandomState(seed).permutation(size)
    return examples.take(np.sort(order[num_heldout:])), examples.take(np.sort(order[:num_heldout]))


def array_examples(
    images: np.ndarray,
    labels: np.ndarray | None,
    image_size: int | tuple[int, int],
    num_classes: int | None,
    origin: str,
) -> ArrayExamples:
    """Checks a data set's arrays and resizes the images.

    Args:
        images: uint8[N,h,w,3], uint8[N,h,w,1] or uint8[N,h,w].
        labels: int[N] or int[N,1], or None.
        image_size: (H, W), at most (h, w).
        num_classes: Labels are in [0, num_classes); None for no bound.
        origin: Where the arrays come from, for errors.

    Raises:
        InputError: Shapes, types or labels are wrong.
    """
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
    if images.dtype != np.uint8 or not is_image or not images.size:
        raise InputError(
            "images must be uint8 [N, height, width, 3] or [N, height, width], at least one. "
            f"Received: dtype={images.dtype}, shape={images.shape}, from={origin}"
        )
    if labels is not None:
        labels = _check_labels(np.asarray(labels), len(images), num_classes, origin)
    try:
        return ArrayExamples(resize_arrays(images, size_pair(image_size)), labels)
    except InputError as error:
        raise InputError(f"{error}. Received: {image_size=}, from={origin}") from None


def resize_arrays(images: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """The centre of each image, resized by area; as `decoding.decode_image` does to files.

    Args:
        images: uint8[N,h,w,3], or uint8[N,h,w] of grey levels.
        image_size: (H, W).

    Returns:
        uint8[N,H,W,3].

    Raises:
        InputError: `image_size` is larger than the images.
    """
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    size = images.shape[1:3]
    if size[0] < image_size[0] or size[1] < image_size[1]:
        raise InputError(
            f"images of {size[0]}x{size[1]} pixels are smaller than image_size "
            f"{image_size[0]}x{image_size[1]}; choose a smaller image_size"
        )
    if size == tuple(image_size):
        return np.ascontiguousarray(images)
    chunks = range(0, len(images), _CHUNK)
    return np.concatenate([_resize(images[at : at + _CHUNK], image_size) for at in chunks])


def _resize(images: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    stretch = min(images.shape[1] / image_size[0], images.shape[2] / image_size[1])
    rows = _area_sums(images, 1, image_size[0], stretch)
    sums = _area_sums(rows, 2, image_size[1], stretch)
    return np.rint(sums / stretch**2).astype("uint8")


def _area_sums(values: np.ndarray, axis: int, length: int, stretch: float) -> np.ndarray:
    """float64, `length` long on `axis`: sums over centred intervals of the length `stretch`."""
    # Differences of the running sum at the ends of the intervals.
    size = values.shape[axis]
    edges = (size - length * stretch) / 2 + stretch * np.arange(length + 1)
    whole = np.clip(edges.astype(int), 0, size - 1)
    part = (edges - whole - 1).reshape(-1, *[1] * (values.ndim - axis - 1))
    running = np.cumsum(values, axis=axis, dtype="float64")
    return np.diff(running.take(whole, axis) + part * values.take(whole, axis), axis=axis)


def _check_labels(labels, num_images, num_classes, origin) -> np.ndarray:
    if labels.shape not in [(num_images,), (num_images, 1)] or labels.dtype.kind not in "iu":
        raise InputError(
            "labels must be integers, one per image. Received: "
            f"dtype={labels.dtype}, shape={labels.shape}, images={num_images}, from={origin}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    bound = _MAX_CLASSES if num_classes is None else num_classes
    if lowest < 0 or highest >= bound:
        raise InputError(
            f"labels must be class numbers from 0 to {bound - 1}. "
            f"Received: {lowest=}, {highest=}, from={origin}"
        )
    return labels.reshape(num_images)


def _as_json(value):
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Source):
        return value.description
    return [_as_json(each) for each in value] if isinstance(value, list | tuple) else value
