"""Low data: what a linear classifier learns from a few labels a class."""

import os
from collections.abc import Sequence

import numpy as np

from igpt_tf.data import Source
from igpt_tf.errors import InputError
from igpt_tf.evaluation import encoders
from igpt_tf.evaluation.features import Features, Rows
from igpt_tf.evaluation.linear_probe import features_of
from igpt_tf.evaluation.probe import Classifier, Solver, fit_each
from igpt_tf.evaluation.splits import labelled, source_of
from igpt_tf.savedmodel.load import SavedModel

# Of the paper; those that a data set cannot give are left out unless they are asked for.
LABELS_PER_CLASS = (4, 25, 400)
# Few labels want stronger regularisation.
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3)


def low_data(
    model: SavedModel,
    *,
    workdir: str,
    source: Source | None,
    solver: Solver,
    labels_per_class: Sequence[int] | None = None,
    num_subsets: int = 5,
    num_train: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict:
    """Classifiers from k labels a class, on the model's features and on raw pixels.

    For each k, the layer and the solver's setting with the best mean held-out accuracy over the
    subsets are taken; the test part, where there is one, only measures them.

    Args:
        model: The model.
        workdir: Keeps the features; `linear_probe`'s are used again.
        source: Labelled images; None for those the model was trained on.
        solver: Fits the classifiers.
        labels_per_class: Each k; the paper's 4, 25 and 400, as far as there are images, if None.
        num_subsets: Random subsets for each k.
        num_train: Draw them from so many random training images; all if None.
        batch_size: Images at a time through the network.
        seed: Of the subsets and the choice of training images.

    Returns:
        The report, JSON-able: "measured_on", "pretrained_network" and "raw_pixels" with a row for
        each k.

    Raises:
        InputError: As `linear_probe`; or a class has fewer than k images.

    Source: paper, section 4.6.
    """
    contestants = [encoders.pretrained(model), encoders.raw_pixels()]
    source = source_of(model, source)
    splits = labelled(source, num_train, seed)
    labels_per_class = _checked(labels_per_class, splits.train.labels, splits.num_classes)
    if num_subsets < 1:
        raise InputError(f"at least one subset is needed. Received: {num_subsets=}")
    cache = os.path.join(workdir, "features")
    report = {
        "saved_model": model.path,
        "step": model.metadata.get("step"),
        "data": source.description,
        "num_images": splits.sizes,
        "num_classes": splits.num_classes,
        "num_subsets": num_subsets,
        "seed": seed,
        "measured_on": splits.measured_on,
        "solver": solver.setting,
    }
    for encoder in contestants:
        parts = features_of(encoder, splits, cache, batch_size=batch_size)
        report[encoder.title.replace(" ", "_")] = [
            _one_k(
                parts,
                [draw_subset(splits.train.labels, k, (seed, i)) for i in range(num_subsets)],
                splits.num_classes,
                solver,
                {"labels_per_class": k},
                title=f"{encoder.title}, {k} labels a class",
            )
            for k in labels_per_class
        ]
    return report


def parse_counts(texts: Sequence[str] | None) -> list[int] | None:
    """["4", "25"] -> [4, 25]. Raises: InputError."""
    try:
        return None if texts is None else [int(text) for text in texts]
    except ValueError:
        raise InputError(
            f"labels_per_class is a list such as 4,25,400. Received: {','.join(texts)}"
        ) from None


def draw_subset(labels: np.ndarray, labels_per_class: int, seed: Sequence[int]) -> np.ndarray:
    """Indices, sorted, of `labels_per_class` random images of each class in `labels` int[N]."""
    random = np.random.RandomState((*seed, labels_per_class))
    drawn = [
        random.permutation(np.flatnonzero(labels == one))[:labels_per_class]
        for one in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


def _one_k(
    parts: dict[str, Features],
    subsets: list[np.ndarray],
    num_classes: int,
    solver: Solver,
    row: dict,
    *,
    title: str,
) -> dict:
    """`row` with the choice made for these subsets and its accuracies."""

    def of_layer(layer) -> tuple[np.ndarray, list[list[Classifier]]]:
        valid = Rows([parts["valid"]], [layer])
        fitted = [
            solver.fit(Rows([parts["train"]], [layer], subset), num_classes, solver.values)
            for subset in subsets
        ]
        return np.array([[one.accuracy(valid) for one in values] for values in fitted]), fitted

    results = fit_each(of_layer, range(parts["train"].num_layers), title)
    accuracies = np.array([accuracy for accuracy, _ in results])  # [layers, subsets, values]
    layer, value = np.unravel_index(accuracies.mean(axis=1).argmax(), accuracies.shape[::2])
    row = {
        **row,
        "layer": int(layer),
        solver.setting: solver.values[value],
        **_spread("valid", accuracies[layer, :, value]),
    }
    if "test" in parts:
        test = Rows([parts["test"]], [layer])
        row |= _spread("test", [values[value].accuracy(test) for values in results[layer][1]])
    return row


def _spread(part: str, accuracies: Sequence[float]) -> dict:
    """Mean and sample standard deviation, the numbers themselves beside them."""
    accuracies = [float(accuracy) for accuracy in accuracies]
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    return {
        f"{part}_accuracy": float(np.mean(accuracies)),
        f"{part}_deviation": deviation,
        f"{part}_accuracies": accuracies,
    }


def _checked(
    labels_per_class: Sequence[int] | None, labels: np.ndarray, num_classes: int
) -> list[int]:
    counts = np.bincount(labels, minlength=num_classes)
    rarest = int(counts.argmin())
    if not counts[rarest]:
        raise InputError(
            "no labels can be drawn from a class without training images; use more images, or a "
            f"data set that has all its classes. Received: class={rarest}, num_train={len(labels)}"
        )
    if labels_per_class is None:
        labels_per_class = [k for k in LABELS_PER_CLASS if k <= counts[rarest]] or [1]
    for k in labels_per_class:
        if not 1 <= k <= counts[rarest]:
            raise InputError(
                f"class {rarest} has only {counts[rarest]} training images; ask for 1 to "
                f"{counts[rarest]} labels a class. Received: labels_per_class={k}"
            )
    return list(labels_per_class)
