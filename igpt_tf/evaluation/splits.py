"""The labelled images of a data set, checked before anything long begins."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from igpt_tf.data import Source, source_from_description
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.evaluation.encoders import check_fits
from igpt_tf.savedmodel.load import SavedModel


@dataclass(frozen=True)
class Splits:
    """Labelled images.

    Attributes:
        train: To fit on.
        valid: To choose on.
        test: To report, or None where the data set has none.
        num_classes: Labels are below it.
    """

    train: Examples
    valid: Examples
    test: Examples | None
    num_classes: int

    def __iter__(self) -> Iterator[tuple[str, Examples]]:
        """(name, examples) of the parts that exist."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return iter((name, part) for name, part in parts.items() if part is not None)

    @property
    def measured_on(self) -> str:
        """ "test", or "valid" where there is no test part."""
        return "valid" if self.test is None else "test"

    @property
    def sizes(self) -> dict[str, int]:
        """{"train": N, ...}."""
        return {name: len(part) for name, part in self}


def source_of(model: SavedModel, source: Source | None, tool: str = "linear_probe") -> Source:
    """`source`, or the data set the model was trained on; checked against the model.

    Args:
        model: The model.
        source: The data set, if it was named.
        tool: The program that asks, for the error.

    Raises:
        InputError: The model does not name its data, or the images are not of its size.
    """
    if source is None:
        description = model.metadata.get("data")
        if description is None:
            raise InputError(
                "this SavedModel does not say what it was trained on; name the data set, such as "
                f"--gin_param='{tool}.source=@digits()'. Received: saved_model={model.path}"
            )
        source = source_from_description(description)
    check_fits(model, source.image_size)
    return source


def labelled(source: Source, num_train: int | None = None, seed: int = 0) -> Splits:
    """The parts of a data set, its training part cut to `num_train` random images.

    Raises:
        InputError: Labels are missing, out of range or all the same, or `num_train` is too large.
    """
    train = source.train
    if num_train is not None:
        if not 1 <= num_train <= len(train):
            raise InputError(
                f"num_train lies between 1 and the {len(train)} training images. "
                f"Received: {num_train=}"
            )
        order = np.random.RandomState(seed).permutation(len(train))
        train = train.take(np.sort(order[:num_train]))
    test = source.test if source.test is not None and source.test.labels is not None else None
    splits = Splits(train, source.valid, test, _num_classes(source))
    for name, part in splits:
        _check_labels(part, name, splits.num_classes)
    if len(np.unique(train.labels)) < 2:
        raise InputError(
            "a classifier needs at least two classes among the training images. "
            f"Received: labels={np.unique(train.labels).tolist()}, num_train={len(train)}"
        )
    return splits


def _num_classes(source: Source) -> int:
    if source.train.labels is None or source.valid.labels is None:
        raise InputError(
            "the data set has no labels, which a classifier needs; put the images into class "
            f"folders, or name a labelled data set. Received: source={source.name}"
        )
    return len(source.class_names) if source.class_names else int(source.train.labels.max()) + 1


def _check_labels(part: Examples, name: str, num_classes: int) -> None:
    lowest, highest = int(part.labels.min()), int(part.labels.max())
    if lowest < 0 or highest >= num_classes:
        raise InputError(
            f"the labels of the {name} part must be 0 to {num_classes - 1}. "
            f"Received: {lowest=}, {highest=}"
        )
