"""Writes a live model as a SavedModel folder, completely or not at all."""

import os
import shutil

import numpy as np
import tensorflow as tf

from igpt_tf import files
from igpt_tf.errors import InputError
from igpt_tf.objectives import objective_of_model
from igpt_tf.palette import check_palette
from igpt_tf.savedmodel.metadata import make_metadata, write_metadata
from igpt_tf.savedmodel.signatures import SignatureFunctions, build_functions
from igpt_tf.savedmodel.warmup import write_warmup


def write_pretrained(model, palette, path: str, *, objective: dict, **description) -> str:
    """Writes a pretrained model with every signature of its kind.

    Args:
        model: An `ImageGPT`.
        palette: Its `Palette`.
        path: The folder to write, by convention `.../export/STEP`; replaced if it exists.
        objective: `get_config()` of the objective.
        **description: Further fields of the metadata:
            data: Description of the data's source, {"name", "arguments"} and, if known,
                "fingerprint" and "module"; or None.
            class_names: Names of the data's classes, or None.
            step: Number of optimizer steps behind the weights.
            nats_per_token: Held-out loss of these weights, or None if it was not measured.
            initial_model: {"path", "step"} of the model that training started from, or None.

    Returns:
        `path`.

    Raises:
        InputError: The palette's size is not the model's vocabulary size, the objective or a field
            of the description is wrong, or a weight is not finite.

    Example:
        write_pretrained(
            model, palette, "runs/mine/export/70", objective=Autoregressive().get_config(),
            data=None, step=70,
        )
    """
    check_palette(palette, model)
    objective = objective_of_model(objective, model)
    metadata = make_metadata(model, palette, objective, **description)
    functions = build_functions(SignatureFunctions(model, palette, objective), metadata)
    return write_folder(path, model, palette, functions, metadata)


def write_classifier(
    classifier,
    palette,
    path: str,
    *,
    objective: dict,
    masks: np.ndarray | None,
    task: dict,
    **description,
) -> str:
    """Writes a fine-tuned model with every signature of its kind.

    Args:
        classifier: A `Classifier`.
        palette: `Palette` of its network.
        path: The folder to write; replaced if it exists.
        objective: `get_config()` of the objective that the network was pretrained on.
        masks: bool[K,T], the masks of which the majority decides; None for an autoregressive
            network.
        task: JSON-able settings of the fine-tuning.
        **description: As in `write_pretrained`.

    Returns:
        `path`.

    Raises:
        InputError: As `write_pretrained`.
    """
    network = classifier.network
    check_palette(palette, network)
    objective = objective_of_model(objective, network)
    task = {
        **task,
        "name": "classification",
        "num_classes": classifier.num_classes,
        "num_masks": 0 if masks is None else len(masks),
    }
    metadata = make_metadata(network, palette, objective, task=task, **description)
    signatures = SignatureFunctions(network, palette, objective, classifier, masks)
    functions = build_functions(signatures, metadata)
    return write_folder(path, classifier, palette, functions, metadata)


def write_folder(path: str, model, palette, functions: dict, metadata: dict) -> str:
    """Writes a SavedModel under a temporary name, then renames its folder.

    Args:
        path: The folder to write.
        model: The Keras model whose weights are stored.
        palette: Its `Palette`.
        functions: Signature name -> `tf.function`.
        metadata: From `make_metadata`.

    Returns:
        `path`.
    """
    _check_finite(model)
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    temporary = os.path.join(parent, f".{name}{files.TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)
    tf.saved_model.save(_Module(model, functions), temporary, signatures=functions)
    write_metadata(temporary, {**metadata, "signatures": sorted(functions)}, palette)
    write_warmup(temporary, metadata)
    files.replace_folder(temporary, path)
    return path


class _Module(tf.Module):
    """What is saved: each weight once, by its name, and the signatures as methods.

    `tf.saved_model.load(path).sample(num_images=4, seed=1)` calls a signature with its defaults;
    `.signatures["sample"]` of the loaded object takes every input.
    """

    def __init__(self, model, functions):
        super().__init__()
        self.weights = {weight_name(weight): weight.value for weight in model.weights}
        for name, function in functions.items():
            setattr(self, name, function)


def weight_name(variable) -> str:
    """Name of a weight inside its model, e.g. `block_0/attention/qkv_kernel`."""
    return variable.path.split("/", 1)[1]


def weight_key(variable) -> str:
    """Name of a weight inside the SavedModel's checkpoint."""
    return f"weights/{weight_name(variable).replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"


def _check_finite(model) -> None:
    for weight in model.weights:
        check_finite(weight_name(weight), weight.numpy(), "train or import the model again")


def check_finite(name: str, value: np.ndarray, fix: str) -> None:
    """Raises: InputError if a weight has NaN or infinite values."""
    num_wrong = value.size - np.count_nonzero(np.isfinite(value))
    if num_wrong:
        raise InputError(
            f"the weight {name} has values that are NaN or infinite; {fix}. "
            f"Received: {num_wrong:,} of {value.size:,} values"
        )
