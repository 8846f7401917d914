"""A SavedModel of a few weights for the tests of what is made of it."""

import keras

from igpt_tf.data import digits
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.write import write_pretrained


def write_tiny(path, *, data: dict | None = None, image_size=(8, 8), num_layers=2) -> str:
    """Writes an untrained model of the digits, or of `data`; its path."""
    keras.utils.set_random_seed(0)
    model = ImageGPT(
        image_size=image_size, vocabulary_size=17, num_layers=num_layers, hidden_dim=16, num_heads=2
    )
    return write_pretrained(
        model,
        Palette.grey(17),
        str(path),
        objective={"name": "autoregressive"},
        data=digits().description if data is None else data,
    )
