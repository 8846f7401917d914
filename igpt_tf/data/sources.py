"""What a data set is to the rest of the program, and how to name one in a file."""

import dataclasses
import functools
import inspect
import math
import os

import gin
import numpy as np

from igpt_tf.data.examples import ArrayExamples, FileExamples
from igpt_tf.data.images import fit_array
from igpt_tf.errors import InputError

Examples = ArrayExamples | FileExamples

_SOURCES = {}


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set, split.

    Attributes:
        train, valid: Examples; `valid` never overlaps `train`.
        test: Examples, or None where the data set has none.
        class_names: A name per label, or None without labels.
        name, arguments: The function that made it, and what it was called with.
    """

    train: Examples
    valid: Examples
    test: Examples | None
    class_names: tuple[str, ...] | None
    name: str = ""
    arguments: dict = dataclasses.field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.train.image_size

    @property
    def description(self) -> dict:
        """JSON-able: `source_from_description` builds the same source from it."""
        return {"name": self.name, "arguments": self.arguments}


def register(build):
    """Registers a source with gin and by name, and notes on its result how it was made."""
    signature = inspect.signature(build)

    @functools.wraps(build)
    def source(**arguments):
        bound = signature.bind(**arguments)
        bound.apply_defaults()
        plain = {name: _plain(value) for name, value in bound.arguments.items()}
        return dataclasses.replace(build(**arguments), name=build.__name__, arguments=plain)

    _SOURCES[build.__name__] = source
    return gin.register(source)


def source_from_description(description: dict) -> Source:
    """Builds a source again.

    Args:
        description: `Source.description`, {"name": ..., "arguments": {...}}.

    Raises:
        InputError: No such source, arguments it does not take, or its data are not there.
    """
    name = description.get("name")
    if name not in _SOURCES:
        raise InputError(
            f"no such data set; there are {', '.join(sorted(_SOURCES))}. Received: name={name!r}"
        )
    arguments = description.get("arguments", {})
    try:
        inspect.signature(_SOURCES[name]).bind(**arguments)
    except TypeError as error:
        raise InputError(f"the data set {name!r} is {error}. Received: {arguments=}") from None
    return _SOURCES[name](**arguments)


def heldout_split(examples: Examples, heldout: float, seed: int) -> tuple[Examples, Examples]:
    """(train, valid): a seeded random share `heldout` of `examples` becomes `valid`.

    Raises:
        InputError: `heldout` leaves either part empty.
    """
    size = len(examples)
    num_heldout = math.ceil(round(size * heldout, 6))
    if not 0 < heldout < 1 or num_heldout >= size:
        raise InputError(
            "the held-out share lies between 0 and 1 and leaves images on both sides. "
            f"Received: heldout={heldout}, images={size}"
        )
    # RandomState, whose stream NumPy has frozen for good: the split outlives versions.
    order = np.random.RandomState(seed).permutation(size)
    return examples.take(np.sort(order[num_heldout:])), examples.take(np.sort(order[:num_heldout]))


def array_examples(images, labels, image_size, num_classes, where: str) -> ArrayExamples:
    """Checks and resizes a data set's arrays.

    Args:
        images: uint8[N,h,w,3], uint8[N,h,w,1] or uint8[N,h,w].
        labels: int[N] or None.
        image_size: (H, W), at most (h, w).
        num_classes: Labels lie in [0, num_classes); None for no bound.
        where: Where the arrays come from, for the error.

    Raises:
        InputError: Shapes, types or labels are wrong.
    """
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    shape_is_right = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
    if images.dtype != np.uint8 or not shape_is_right or not len(images):
        raise InputError(
            "images are uint8 [N, height, width, 3] or [N, height, width], at least one. "
            f"Received: dtype={images.dtype}, shape={images.shape}, from={where}"
        )
    if labels is not None:
        labels = _checked_labels(np.asarray(labels), len(images), num_classes, where)
    try:
        return ArrayExamples(fit_array(images, image_size), labels)
    except InputError as error:
        raise InputError(f"{error}. Received: {image_size=}, from={where}") from None


def _checked_labels(labels, num_images, num_classes, where) -> np.ndarray:
    if labels.size != num_images or labels.dtype.kind not in "iu":
        raise InputError(
            "labels are integers, one an image. Received: "
            f"dtype={labels.dtype}, shape={labels.shape}, images={num_images}, from={where}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        raise InputError(
            "labels count the classes from 0. "
            f"Received: {lowest=}, {highest=}, classes={num_classes}, from={where}"
        )
    return labels.reshape(num_images)


def _plain(value):
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Source):
        return value.description
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
