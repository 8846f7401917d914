"""Supervised baseline: a Wide ResNet trained from scratch on all labels or on a few."""

import os
from collections.abc import Callable, Sequence

import gin
import keras
import numpy as np
import tensorflow as tf

from igpt_tf import config, files
from igpt_tf.data import Source, batches, evaluation_batches
from igpt_tf.data.augmentation import Augmentation
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.evaluation.linear_probe import NO_TEST_NOTE
from igpt_tf.evaluation.low_data import statistics
from igpt_tf.evaluation.splits import (
    SPLIT_TITLES,
    Splits,
    check_labels_per_class,
    draw_subset,
    labelled_splits,
    resolve_source,
)
from igpt_tf.formatting import few_images_warning, interval_text, percent, table
from igpt_tf.model.wide_resnet import wide_resnet
from igpt_tf.savedmodel.load import SavedModel


@gin.configurable
def supervised_baseline(
    *,
    workdir: str,
    saved_model: str | None = None,
    source: Source | None = None,
    augmentation: Sequence[Augmentation] = (),
    labels_per_class: Sequence[int] = (),
    num_subsets: int = 5,
    all_labels: bool = True,
    num_steps: int = 2000,
    evaluate_every: int = 200,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> dict:
    """Trains Wide ResNets on all labels and on a few labels per class.

    SGD with Nesterov momentum 0.9 and a cosine schedule. The step with the best held-out accuracy
    is kept; the test split, where there is one, is only measured. Subsets of labels are those of
    `low_data` with the same seed.

    Args:
        workdir: Folder for `supervised_baseline.json`.
        saved_model: Path of a model whose training data, split and image size are used.
        source: Labelled images, instead of the model's.
        augmentation: Functions of (images, seeds), applied in order to training images.
        labels_per_class: Numbers of labels per class to train on.
        num_subsets: Random subsets per number of labels.
        all_labels: Whether to train on all labels too.
        num_steps: Steps of each training.
        evaluate_every: Steps between measurements of the held-out accuracy; divides `num_steps`.
        batch_size: Images per step.
        learning_rate: Peak learning rate.
        seed: Random seed of weights, order, augmentation and subsets.

    Returns:
        The content of `supervised_baseline.json`: "all_labels" with a row or None, "few_labels"
        with a row per number of labels; a row has the accuracies as in `low_data`.

    Raises:
        InputError: No data set is named, labels are missing, or a number is out of range.

    Example:
        supervised_baseline(workdir="runs/wrn", source=digits(), labels_per_class=[4, 25])
    """
    source = _source(saved_model, source)
    splits = labelled_splits(source)
    counts = check_labels_per_class(labels_per_class, splits.train.labels, splits.num_classes)
    if num_subsets < 1 or evaluate_every < 1 or num_steps % evaluate_every:
        raise InputError(
            "evaluate_every must divide num_steps, and num_subsets must be 1 or more. "
            f"Received: {num_steps=}, {evaluate_every=}, {num_subsets=}"
        )

    def build():
        return wide_resnet(image_size=source.image_size, num_classes=splits.num_classes)

    def train(title: str, examples: Examples, run_seed: int) -> dict:
        print(f"{title}, {len(examples):,} images, {num_steps:,} steps:", flush=True)
        return _train(
            build,
            examples,
            splits,
            augmentation=augmentation,
            num_steps=num_steps,
            evaluate_every=evaluate_every,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=run_seed,
        )

    num_parameters = build().count_params()
    config.refuse_unread_bindings()
    files.make_workdir(workdir)
    report = {
        "data": source.description,
        "num_images": splits.sizes,
        "num_classes": splits.num_classes,
        "measured_on": splits.measured_on,
        "num_parameters": num_parameters,
        "num_steps": num_steps,
        "batch_size": batch_size,
        "num_subsets": num_subsets,
        "seed": seed,
        "all_labels": None,
        "few_labels": [],
    }
    for k in counts:
        subsets = [draw_subset(splits.train.labels, k, (seed, i)) for i in range(num_subsets)]
        runs = [
            train(f"{k} labels per class, subset {i}", splits.train.take(subset), seed + i)
            for i, subset in enumerate(subsets)
        ]
        report["few_labels"].append({"labels_per_class": k, **_row(runs, splits)})
    if all_labels:
        report["all_labels"] = _row([train("all labels", splits.train, seed)], splits)
    files.write_json(os.path.join(workdir, "supervised_baseline.json"), report)
    return report


def format_report(report: dict) -> str:
    """The report of `supervised_baseline` as a table: a row per number of labels."""
    split = report["measured_on"]
    size = report["num_images"][split]
    rows = [(row["labels_per_class"], row) for row in report["few_labels"]]
    if report["all_labels"]:
        rows.append(("all", report["all_labels"]))
    cells = [
        [
            name,
            percent(row[f"{split}_accuracy"]),
            interval_text(row[f"{split}_interval"]),
            f"{100 * row[f'{split}_deviation']:.1f} %" if len(row["steps"]) > 1 else "",
            ", ".join(map(str, row["steps"])),
        ]
        for name, row in rows
    ]
    accuracy = f"{SPLIT_TITLES[split]} (n={size:,})"
    header = ["labels per class", accuracy, "95 % interval", "std of subsets", "best step"]
    notes = [
        f"Wide ResNet with {report['num_parameters']:,} parameters, trained from scratch.",
        few_images_warning(size),
        NO_TEST_NOTE if split == "valid" else "",
    ]
    return "\n".join([table(header, cells), *filter(None, notes)])


def _source(saved_model: str | None, source: Source | None) -> Source:
    if saved_model is not None:
        return resolve_source(SavedModel(saved_model), source, "supervised_baseline")
    if source is None:
        raise InputError(
            "name a data set, --gin_param='supervised_baseline.source=@digits()', or pass "
            "--saved_model for the training data of that model. Received: saved_model=None"
        )
    return source


def _row(runs: Sequence[dict], splits: Splits) -> dict:
    """Statistics of several trainings."""
    row = {"steps": [run["step"] for run in runs]}
    for name, examples in splits:
        if name != "train":
            row |= statistics(name, [run[name] for run in runs], len(examples))
    return row


def _train(
    build: Callable[[], keras.Model],
    examples: Examples,
    splits: Splits,
    *,
    augmentation: Sequence[Augmentation],
    num_steps: int,
    evaluate_every: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> dict:
    """Trains one network; returns {"step", "valid": accuracy, "test": accuracy if there is one}."""
    keras.utils.set_random_seed(seed)
    network = build()
    network.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(learning_rate, num_steps),
            momentum=0.9,
            nesterov=True,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        jit_compile=False,
    )
    train = batches(
        examples, batch_size=batch_size, seed=seed, first_step=0, augmentation=augmentation
    ).map(lambda batch: (batch["images"], batch["labels"]))
    best = keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", patience=num_steps, restore_best_weights=True
    )
    history = network.fit(
        train,
        epochs=num_steps // evaluate_every,
        steps_per_epoch=evaluate_every,
        validation_data=_weighted(splits.valid, batch_size),
        callbacks=[best],
        shuffle=False,  # the batches are in random order
        verbose=2,
    ).history["val_accuracy"]
    accuracies = {}
    for name, part in splits:
        if name != "train":
            scores = network.evaluate(_weighted(part, batch_size), return_dict=True, verbose=0)
            accuracies[name] = float(scores["accuracy"])
    return {"step": (int(np.argmax(history)) + 1) * evaluate_every, **accuracies}


def _weighted(examples: Examples, batch_size: int) -> tf.data.Dataset:
    """(images, labels, weights) of every image once; the padding of the last batch has weight 0."""
    return evaluation_batches(examples, batch_size=batch_size).map(
        lambda batch: (batch["images"], batch["labels"], batch["weight"])
    )
