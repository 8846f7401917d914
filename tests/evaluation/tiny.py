"""A small untrained SavedModel for tests of the tools."""

import keras

from igpt_tf.data import digits
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive, Masked
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.write import write_pretrained
from tests.written_once import written_once

DIGITS = digits().description


@written_once
def write_tiny(
    path, *, data: dict | None = DIGITS, image_size=(8, 8), num_layers=2, causal=True
) -> str:
    """Writes an untrained model whose training data are the digits, or `data`; returns its path."""
    keras.utils.set_random_seed(0)
    model = ImageGPT(
        image_size=image_size,
        vocabulary_size=17,
        num_layers=num_layers,
        hidden_dim=16,
        num_heads=2,
        causal=causal,
    )
    return write_pretrained(
        model,
        Palette.grey(17),
        str(path),
        objective=(Autoregressive() if causal else Masked()).get_config(),
        data=data,
    )
