"""SavedModels of a few random weights, and copies of them with something wrong."""

import numpy as np

from igpt_tf import export
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from tests import oracle

SIZES = {
    "image_size": (4, 6),
    "vocabulary_size": 12,
    "num_layers": 1,
    "hidden_dim": 8,
    "num_heads": 2,
}


def live(causal=True):
    """A model whose answers depend on its inputs, and its palette."""
    model, rng = ImageGPT(**SIZES, causal=causal), np.random.default_rng(1)
    oracle.assign(model, oracle.random_arrays(rng, **SIZES, causal=causal))
    return model, Palette(rng.uniform(-1, 1, (12, 3)).astype("float32"))


def write(path, causal=True) -> str:
    """Exports such a model to `path`; `path` again."""
    return export.write(*live(causal), str(path), objective={"name": "test"}, data=None, step=5)
