"""Networks with random weights, including a non-zero output matrix and gains other than one."""

import numpy as np

from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette


def random_model(
    *, image_size=(4, 4), vocabulary=7, layers=2, dim=24, heads=3, causal=True, seed=0
) -> ImageGPT:
    """An `ImageGPT` of these sizes."""
    model = ImageGPT(
        image_size=image_size,
        vocabulary_size=vocabulary,
        num_layers=layers,
        hidden_dim=dim,
        num_heads=heads,
        causal=causal,
    )
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        around = 1.0 if variable.path.endswith("scale") else 0.0
        noise = 0.2 * rng.standard_normal(variable.shape)
        variable.assign((around + noise).astype("float32"))
    return model


def random_palette(num_colours: int = 7, seed: int = 0) -> Palette:
    """A palette of random colours."""
    return Palette(np.random.default_rng(seed).uniform(-1, 1, (num_colours, 3)).astype("float32"))


def assert_same_weights(actual: ImageGPT, expected: ImageGPT) -> None:
    """Compares weights bit for bit, by name."""
    left, right = ({v.path: np.asarray(v) for v in model.weights} for model in (actual, expected))
    left, right = ({p.split("/", 1)[-1]: v for p, v in side.items()} for side in (left, right))
    assert left.keys() == right.keys()
    for path, value in left.items():
        np.testing.assert_array_equal(value, right[path], err_msg=path)
