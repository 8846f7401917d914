"""SavedModels of a few random weights, and copies of them with something wrong."""

import numpy as np

from igpt_tf.model import Classifier, ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel import write as saved
from tests import oracle
from tests.written_once import written_once

SIZES = {
    "image_size": (4, 6),
    "vocabulary_size": 12,
    "num_layers": 1,
    "hidden_dim": 8,
    "num_heads": 2,
}


OBJECTIVES = {True: {"name": "autoregressive"}, False: {"name": "masked", "probability": 0.15}}


def live(causal=True):
    """A model whose answers depend on its inputs, and its palette."""
    model, rng = ImageGPT(**SIZES, causal=causal), np.random.default_rng(1)
    oracle.assign(model, oracle.random_arrays(rng, **SIZES, causal=causal))
    return model, Palette(rng.uniform(-1, 1, (12, 3)).astype("float32"))


@written_once
def write(path, causal=True) -> str:
    """Exports such a model to `path`; `path` again."""
    return saved.write_pretrained(
        *live(causal), str(path), objective=OBJECTIVES[causal], data=None, step=5
    )


@written_once
def write_classifier(path, causal=True) -> str:
    """Exports a classifier of three classes to `path`; `path` again."""
    network, palette = live(causal)
    classifier, rng = Classifier(network, 3), np.random.default_rng(2)
    classifier(np.zeros((1, network.sequence_length), "int32"))
    for weight in classifier.weights:
        if not any(weight is other for other in network.weights):
            weight.assign(rng.normal(size=weight.shape))
    masks = None if causal else rng.random((3, network.sequence_length)) < 0.2
    about = {"objective": OBJECTIVES[causal], "data": None, "class_names": None, "step": 5}
    return saved.write_classifier(
        classifier, palette, str(path), masks=masks, task={}, nats_per_token=None, **about
    )
