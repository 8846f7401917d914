"""A live model to a SavedModel folder, all of it or nothing."""

import os
import shutil

import numpy as np
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.savedmodel import describe as metadata_file
from igpt_tf.savedmodel import warmup
from igpt_tf.savedmodel.signatures import classifying, pretrained
from igpt_tf.savedmodel.weights import name_of


def write_pretrained(
    model,
    palette,
    path: str,
    *,
    objective: dict,
    data: dict | None,
    class_names=None,
    step: int = 0,
    nats_per_token: float | None = None,
) -> str:
    """Writes a pretrained model with every signature of its kind.

    Args:
        model: An `ImageGPT`.
        palette: Its `Palette`.
        path: The folder to write, `.../export/STEP` by convention; replaced if it exists.
        objective: JSON-able description of the objective.
        data: JSON-able description of the data's source, or None.
        class_names: Names of the data's classes, or None.
        step: Optimizer steps behind the weights.
        nats_per_token: Held-out loss of these weights, or None if not measured.

    Returns:
        `path`.

    Raises:
        InputError: The palette's size is not the model's vocabulary.
    """
    _check_palette(palette, model)
    description = metadata_file.describe(
        model,
        palette,
        objective=objective,
        data=data,
        class_names=class_names,
        step=step,
        nats_per_token=nats_per_token,
    )
    return write_folder(path, model, pretrained(model, palette), description, palette)


def write_classifier(
    classifier, palette, path: str, *, masks: np.ndarray | None, task: dict, **about
) -> str:
    """Writes a fine-tuned model.

    Args:
        classifier: A `Classifier`.
        palette: Its network's `Palette`.
        path: As in `write`.
        masks: bool[K,T] whose majority decides, or None for an autoregressive network.
        task: JSON-able description of the fine-tuning.
        **about: The named arguments of `write`, but all of them.

    Returns:
        `path`.

    Raises:
        InputError: As `write`.
    """
    _check_palette(palette, classifier.network)
    description = metadata_file.describe(classifier.network, palette, **about)
    description["task"] = {
        "name": "classification",
        "num_classes": classifier.num_classes,
        "num_masks": 0 if masks is None else len(masks),
        **task,
    }
    functions = classifying(classifier, palette, masks)
    return write_folder(path, classifier, functions, description, palette)


def _check_palette(palette, model) -> None:
    if len(palette) != model.vocabulary_size:
        raise InputError(
            "the palette's size must be the model's vocabulary. Received: "
            f"colours={len(palette)}, vocabulary_size={model.vocabulary_size}"
        )


def write_folder(path: str, model, signatures: dict, description: dict, palette) -> str:
    """Writes the folder under a name beside its own, then renames it."""
    description = {**description, "signatures": sorted(signatures)}
    path = os.path.abspath(path)
    unfinished = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    tf.saved_model.save(_Served(model, signatures), unfinished, signatures=signatures)
    metadata_file.save(unfinished, description, palette)
    warmup.write(unfinished, signatures)
    _replace(unfinished, path)
    return path


class _Served(tf.Module):
    """Holds what the signatures use: each weight once, by its name."""

    def __init__(self, model, signatures):
        super().__init__()
        self.weights = {name_of(weight): weight.value for weight in model.weights}
        self.functions = signatures


def _replace(source: str, target: str) -> None:
    """Renames a folder onto another, which exists or not."""
    aside = f"{source}.old"
    shutil.rmtree(aside, ignore_errors=True)
    if os.path.exists(target):
        os.rename(target, aside)
    os.rename(source, target)
    shutil.rmtree(aside, ignore_errors=True)
