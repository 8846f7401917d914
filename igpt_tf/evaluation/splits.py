"""The labelled images that a tool measures on, checked before it starts."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from igpt_tf.data import Source, source_from_description
from igpt_tf.data.mixture import MixedExamples
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.savedmodel.load import SavedModel

SPLIT_TITLES = {"train": "train", "valid": "held-out", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Splits:
    """Labelled images.

    Attributes:
        train: Images to fit on.
        valid: Held-out images to choose on.
        test: Images to report on, or None where the data set has none.
        num_classes: Labels are in [0, num_classes).
    """

    train: Examples
    valid: Examples
    test: Examples | None
    num_classes: int

    def __iter__(self) -> Iterator[tuple[str, Examples]]:
        """Yields (name, examples) of the splits that exist."""
        for name in SPLIT_TITLES:
            examples = getattr(self, name)
            if examples is not None:
                yield name, examples

    @property
    def merged(self) -> Examples:
        """Training and held-out images together; every epoch has each image once."""
        parts = [self.train, self.valid]
        return MixedExamples(parts, [len(part) for part in parts], labelled=True)

    @property
    def measured_on(self) -> str:
        """The split that results are reported on: "test", or "valid" without a test split."""
        return "valid" if self.test is None else "test"

    @property
    def sizes(self) -> dict[str, int]:
        """{"train": N, ...}."""
        return {name: len(examples) for name, examples in self}


def resolve_source(model: SavedModel, source: Source | None, tool: str) -> Source:
    """Returns `source`, or the data set the model was trained on, checked against the model.

    Prints a warning if that data set has changed since: the split may then be another one, so that
    held-out images were trained on.

    Args:
        model: The model.
        source: The data set that the user named, if any.
        tool: Name of the gin configurable that takes `source`, for the error.

    Raises:
        InputError: The model's data set is unknown, or its images are not of the model's size.
    """
    if source is None:
        source = _training_source(model, tool)
        before = model.metadata["data"].get("fingerprint")
        if before not in (None, source.fingerprint()):
            print(
                f"warning: the data set {source.name} has changed since the model was trained on "
                "it; it may have been trained on images that are held out now",
                file=sys.stderr,
            )
    expected = model.image_size
    if tuple(source.image_size) != expected:
        raise InputError(
            f"the model takes images of {expected[0]}x{expected[1]} pixels; give the data set that "
            f"image_size. Received: image_size={tuple(source.image_size)}"
        )
    return source


def _training_source(model: SavedModel, tool: str) -> Source:
    description = model.metadata.get("data")
    example = f"--gin_param='{tool}.source=@digits()'"
    if description is None:
        raise InputError(
            "this SavedModel does not name the data set it was trained on; pass one, e.g. "
            f"{example}. Received: saved_model={model.path}"
        )
    try:
        return source_from_description(description)
    except InputError as error:
        raise InputError(
            "the data set that the model was trained on cannot be opened; its relative paths begin "
            f"in the folder where the run was started, and {example} takes another: {error}"
        ) from None


def labelled_splits(
    source: Source,
    num_train: int | None = None,
    seed: int = 0,
    *,
    labels_per_class: int | None = None,
) -> Splits:
    """The splits of a labelled data set, with fewer training images if wanted.

    Prints a warning about held-out and test images whose classes have no training images.

    Args:
        source: The data set.
        num_train: Number of random training images; None for all of them.
        seed: Random seed of the choice of training images.
        labels_per_class: Number of random training images of each class, instead of `num_train`.

    Raises:
        InputError: Labels are missing, out of range or all equal, or there are fewer images.
    """
    train = source.train
    if num_train is not None and labels_per_class is not None:
        raise InputError(
            "limit training images by num_train or by labels_per_class, not both. "
            f"Received: {num_train=}, {labels_per_class=}"
        )
    if num_train is not None:
        if not 1 <= num_train <= len(train):
            raise InputError(
                f"num_train must be 1 to {len(train)}, the number of training images. "
                f"Received: {num_train=}"
            )
        order = np.random.RandomState(seed).permutation(len(train))
        train = train.take(np.sort(order[:num_train]))
    test = source.test if source.test is not None and source.test.labels is not None else None
    splits = Splits(train, source.valid, test, _num_classes(source))
    for name, examples in splits:
        _check_labels(examples, name, splits.num_classes)
    if labels_per_class is not None:
        check_labels_per_class([labels_per_class], train.labels, splits.num_classes)
        train = train.take(draw_subset(train.labels, labels_per_class, (seed, 0)))
        splits = dataclasses.replace(splits, train=train)
    if len(np.unique(train.labels)) < 2:
        raise InputError(
            "a classifier needs at least two classes among the training images. "
            f"Received: labels={np.unique(train.labels).tolist()}, num_train={len(train)}"
        )
    _warn_about_absent_classes(splits)
    return splits


def _warn_about_absent_classes(splits: Splits) -> None:
    for name, examples in splits:
        absent = ~np.isin(examples.labels, splits.train.labels)
        if absent.any():
            print(
                f"warning: {absent.sum():,} of the {len(absent):,} {SPLIT_TITLES[name]} images "
                "have classes without training images and count as errors, such as class "
                f"{examples.labels[absent.argmax()]}",
                file=sys.stderr,
            )


def check_labels_per_class(
    labels_per_class: Sequence[int], labels: np.ndarray, num_classes: int
) -> list[int]:
    """Returns `labels_per_class`. Raises: InputError: `labels` int[N] has fewer of a class."""
    counts = np.bincount(labels, minlength=num_classes)
    rarest = int(counts.argmin())
    for k in labels_per_class:
        if not counts[rarest]:
            raise InputError(
                "every class needs training images; use more images, or a data set that has all "
                f"its classes. Received: class={rarest} without images, num_train={len(labels)}"
            )
        if not 1 <= k <= counts[rarest]:
            raise InputError(
                f"class {rarest} has only {counts[rarest]} training images; choose 1 to "
                f"{counts[rarest]} labels per class. Received: labels_per_class={k}"
            )
    return list(labels_per_class)


def draw_subset(labels: np.ndarray, labels_per_class: int, seed: Sequence[int]) -> np.ndarray:
    """Sorted indices of `labels_per_class` random images of each class in `labels` int[N]."""
    random = np.random.RandomState((*seed, labels_per_class))
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:labels_per_class]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(chosen))


def _num_classes(source: Source) -> int:
    if source.train.labels is None or source.valid.labels is None:
        raise InputError(
            "the data set has no labels, which a classifier needs; sort the images into class "
            f"folders, or name a labelled data set. Received: source={source.name}"
        )
    return len(source.class_names) if source.class_names else int(source.train.labels.max()) + 1


def _check_labels(examples: Examples, name: str, num_classes: int) -> None:
    lowest, highest = int(examples.labels.min()), int(examples.labels.max())
    if lowest < 0 or highest >= num_classes:
        raise InputError(
            f"the labels of the {name} split must be 0 to {num_classes - 1}. "
            f"Received: {lowest=}, {highest=}"
        )
