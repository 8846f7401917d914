"""What a SavedModel says about itself, in `assets/metadata.json`."""

import json
import os
import platform

import igpt_tf
from igpt_tf.savedmodel.metadata import METADATA, PALETTE


def describe(model, palette, *, objective, data, class_names, step, nats_per_token) -> dict:
    """The content of metadata.json; arguments as in `write`.

    "score" tells what the signature `score` measures, "completion" how `complete` paints.
    "task" is None for a pretrained model. For a fine-tuned one it holds "name" ("classification"),
    "num_classes", "num_masks" of its ensemble (0 without), the weights of its two losses, its
    "learning_rate" and "from_scratch"; "objective" stays the generative one.
    """
    return {
        "model": model.architecture,
        "palette": palette.fingerprint,
        "objective": objective,
        "task": None,
        "score": "likelihood" if model.causal else "pseudo-likelihood",
        "completion": "raster order" if model.causal else "in-painting",
        "data": data,
        "class_names": list(class_names) if class_names is not None else None,
        "step": int(step),
        "nats_per_token": None if nats_per_token is None else float(nats_per_token),
        "versions": versions(),
    }


def versions() -> dict:
    """Of everything that decides a number."""
    import keras
    import tensorflow as tf

    return {
        "igpt_tf": igpt_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def save(folder: str, metadata: dict, palette) -> None:
    """Writes both files into a SavedModel's folder."""
    os.makedirs(os.path.join(folder, "assets"), exist_ok=True)
    palette.save(os.path.join(folder, PALETTE))
    with open(os.path.join(folder, METADATA), "w", encoding="utf-8") as file:
        json.dump(metadata, file, indent=2, allow_nan=False)
        file.write("\n")
