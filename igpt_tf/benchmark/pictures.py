"""Inputs that every rival of the palette sees alike."""

import numpy as np

from igpt_tf.benchmark.shapes import VOCABULARY_SIZE

_SIDE = 32
_BATCH_SIZE = 100


def centroids() -> np.ndarray:
    """A palette's float32[V,3] in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (VOCABULARY_SIZE, 3)).astype("float32")


def batches_of_photos(number: int) -> list[np.ndarray]:
    """`number` pieces of photographs in equal batches of at most 100, uint8[B,32,32,3] each."""
    return np.array_split(_photos(number), -(-number // _BATCH_SIZE))


def _photos(number: int) -> np.ndarray:
    """Pieces of the two photographs of scikit-learn, uint8[number,32,32,3], at most 520."""
    from sklearn.datasets import load_sample_images

    pieces = np.concatenate([_pieces(image) for image in load_sample_images().images])
    return np.random.default_rng(0).permutation(pieces)[:number]


def _pieces(image: np.ndarray) -> np.ndarray:
    """uint8[H,W,3] -> uint8[N,32,32,3]."""
    rows, columns = (size // _SIDE for size in image.shape[:2])
    image = image[: rows * _SIDE, : columns * _SIDE]
    return image.reshape(rows, _SIDE, columns, _SIDE, 3).swapaxes(1, 2).reshape(-1, _SIDE, _SIDE, 3)
