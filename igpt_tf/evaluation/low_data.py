"""Low-data classification: linear classifiers fitted on a few labels per class."""

import os
from collections.abc import Sequence

import gin
import numpy as np

from igpt_tf import config, files
from igpt_tf.data import Source
from igpt_tf.errors import InputError
from igpt_tf.evaluation import features, plots
from igpt_tf.evaluation.features import FeatureMatrix, Features
from igpt_tf.evaluation.linear_probe import (
    LBFGS,
    NO_TEST_NOTE,
    LinearClassifier,
    Solver,
    cached_views,
    fit_each,
)
from igpt_tf.evaluation.splits import (
    SPLIT_TITLES,
    check_labels_per_class,
    draw_subset,
    labelled_splits,
    resolve_source,
)
from igpt_tf.formatting import few_images_warning, interval_text, percent, table, wilson_interval
from igpt_tf.savedmodel.load import SavedModel

# The paper's. Those that a data set has too few images for are left out, unless given explicitly.
LABELS_PER_CLASS = (4, 25, 400)
# Few labels need stronger regularisation.
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3)

_ENCODERS = ("pretrained_network", "raw_pixels")  # keys of the report


@gin.configurable
def low_data(
    *,
    saved_model: str,
    workdir: str,
    source: Source | None = None,
    solver: Solver | None = None,
    labels_per_class: Sequence[int] | None = None,
    num_subsets: int = 5,
    num_train: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict:
    """Fits classifiers on k labels per class, on the model's features and on raw pixels.

    For each k, the layer and the solver's setting with the best mean held-out accuracy over the
    subsets are chosen; the test split, where there is one, is only measured. Features of masked
    models are computed without masks.

    Args:
        saved_model: Path of the model.
        workdir: Folder for `low_data.json`, `low_data.png` and the feature cache; the features that
            `linear_probe` has stored there are reused.
        source: Labelled images; None for the model's training data.
        solver: Fits the classifiers; None for `LBFGS(l2=STRENGTHS)`.
        labels_per_class: Values of k; None for those of 4, 25 and 400 that every class has enough
            images for.
        num_subsets: Number of random subsets per k.
        num_train: Number of random training images to draw from; None for all of them.
        batch_size: Images per call of the network.
        seed: Random seed of the subsets and of the choice of training images.

    Returns:
        The content of `low_data.json`: "measured_on", "num_images", and a row per k under
        "pretrained_network" and "raw_pixels".

    Raises:
        InputError: As `linear_probe`; or a class has fewer than k training images.

    Source: paper, section 4.6.
    """
    config.refuse_unread_bindings()
    files.make_workdir(workdir)
    model = SavedModel(saved_model)
    encoders = [features.pretrained_encoder(model), features.raw_pixels_encoder()]
    solver = solver or LBFGS(l2=STRENGTHS)
    source = resolve_source(model, source, "low_data")
    splits = labelled_splits(source, num_train, seed)
    if labels_per_class is None:
        labels_per_class = _default_labels_per_class(splits.train.labels, splits.num_classes)
    if not labels_per_class:
        raise InputError(
            "labels_per_class must be at least one number, such as [4, 25]. "
            f"Received: low_data.labels_per_class={labels_per_class}"
        )
    labels_per_class = check_labels_per_class(
        labels_per_class, splits.train.labels, splits.num_classes
    )
    if num_subsets < 1:
        raise InputError(f"num_subsets must be 1 or more. Received: {num_subsets=}")
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
    views = cached_views([[each] for each in encoders], splits, cache, batch_size=batch_size)
    for encoder, key, view in zip(encoders, _ENCODERS, views, strict=True):
        parts = {name: each for name, [each] in view.items()}
        report[key] = []
        for k in labels_per_class:
            subsets = [draw_subset(splits.train.labels, k, (seed, i)) for i in range(num_subsets)]
            title = f"{encoder.title}, {k} labels per class"
            row = _fit_subsets(parts, subsets, splits.num_classes, solver, title)
            report[key].append({"labels_per_class": k, **row})
    files.write_json(os.path.join(workdir, "low_data.json"), report)
    plots.accuracy_by_labels(os.path.join(workdir, "low_data.png"), report)
    return report


def format_report(report: dict) -> str:
    """The report of `low_data` as a table: two rows per number of labels."""
    split = report["measured_on"]
    size = report["num_images"][split]
    rows = [
        [
            row["labels_per_class"],
            key.replace("_", " "),
            row["layer"] if key == "pretrained_network" else "",
            percent(row[f"{split}_accuracy"]),
            f"{100 * row[f'{split}_deviation']:.1f} %" if report["num_subsets"] > 1 else "",
            interval_text(row[f"{split}_interval"]),
        ]
        for pair in zip(*(report[key] for key in _ENCODERS), strict=True)
        for key, row in zip(_ENCODERS, pair, strict=True)
    ]
    accuracy = f"{SPLIT_TITLES[split]} (n={size:,})"
    header = ["labels per class", "features", "layer", accuracy, "std of subsets", "95 % interval"]
    notes = [few_images_warning(size), NO_TEST_NOTE if split == "valid" else ""]
    return "\n".join([table(header, rows), *filter(None, notes)])


def parse_labels_per_class(texts: Sequence[str] | None) -> list[int] | None:
    """["4", "25"] -> [4, 25]. Raises: InputError."""
    try:
        return None if texts is None else [int(text) for text in texts]
    except ValueError:
        raise InputError(
            "labels_per_class must be a list of integers such as 4,25,400. "
            f"Received: {','.join(texts)}"
        ) from None


def _fit_subsets(
    parts: dict[str, Features],
    subsets: list[np.ndarray],
    num_classes: int,
    solver: Solver,
    title: str,
) -> dict:
    """The chosen layer and setting for these subsets, with the accuracies."""

    def fit_layer(layer) -> tuple[np.ndarray, list[list[LinearClassifier]]]:
        valid = FeatureMatrix([parts["valid"]], [layer])
        fitted = [
            solver.fit(FeatureMatrix([parts["train"]], [layer], subset), num_classes, solver.values)
            for subset in subsets
        ]
        return np.array([[one.accuracy(valid) for one in values] for values in fitted]), fitted

    results = fit_each(fit_layer, range(parts["train"].num_layers), title)
    accuracies = np.array([accuracy for accuracy, _ in results])  # [layers, subsets, values]
    layer, value = np.unravel_index(accuracies.mean(axis=1).argmax(), accuracies.shape[::2])
    row = {
        "layer": int(layer),
        solver.setting: solver.values[value],
        **statistics("valid", accuracies[layer, :, value], len(parts["valid"].labels)),
    }
    if "test" in parts:
        test = FeatureMatrix([parts["test"]], [layer])
        measured = [values[value].accuracy(test) for values in results[layer][1]]
        row |= statistics("test", measured, len(parts["test"].labels))
    return row


def statistics(split: str, accuracies: Sequence[float], num_images: int) -> dict:
    """Mean, sample standard deviation and values of the subsets' accuracies.

    The interval is that of the mean accuracy for the number of images measured on; the deviation
    is that between subsets of labels.
    """
    accuracies = [float(accuracy) for accuracy in accuracies]
    mean = float(np.mean(accuracies))
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    return {
        f"{split}_accuracy": mean,
        f"{split}_interval": wilson_interval(mean, num_images),
        f"{split}_deviation": deviation,
        f"{split}_accuracies": accuracies,
    }


def _default_labels_per_class(labels: np.ndarray, num_classes: int) -> list[int]:
    """Those of the paper that every class has enough labels for; [1] if there are none."""
    fewest = np.bincount(labels, minlength=num_classes).min()
    return [k for k in LABELS_PER_CLASS if k <= fewest] or [1]
