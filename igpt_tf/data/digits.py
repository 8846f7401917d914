"""scikit-learn's bundled handwritten digits: 1,797 real grey images, no download."""

import numpy as np

from igpt_tf.data.examples import ArrayExamples
from igpt_tf.data.sources import Source, heldout_split, register


@register
def digits(*, heldout: float = 0.2, seed: int = 0) -> Source:
    """8 x 8 digits of 17 grey levels (0 to 16, scaled to 0 to 255).

    Args:
        heldout: Fraction held out as `valid`; there is no test split.
        seed: Random seed of that split.
    """
    # Imported here: only this source needs scikit-learn.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * 255 / 16).astype("uint8")
    images = np.repeat(grey[..., None], 3, axis=-1)
    train, valid = heldout_split(ArrayExamples(images, bunch.target), heldout, seed)
    return Source(train, valid, None, tuple(str(name) for name in bunch.target_names))
