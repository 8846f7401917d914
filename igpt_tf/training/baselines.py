"""Baselines: losses of predictors that ignore the rest of the image."""

import numpy as np


def token_baselines(
    train: np.ndarray, heldout: np.ndarray, vocabulary_size: int
) -> dict[str, float]:
    """Held-out nats per token of three predictors fitted on the training tokens.

    Args:
        train: int[N,T].
        heldout: int[M,T].
        vocabulary_size: V.

    Returns:
        {"uniform", "unigram", "per_position"}: losses of equal probabilities (ln V), of the tokens'
        frequencies, and of their frequencies at each position. Counts are add-one smoothed.
    """
    return {
        "uniform": float(np.log(vocabulary_size)),
        "unigram": _nats(train.reshape(-1, 1), heldout.reshape(-1, 1), vocabulary_size),
        "per_position": _nats(train, heldout, vocabulary_size),
    }


def _nats(train, heldout, vocabulary_size) -> float:
    """Mean nats of each column's tokens under that column's smoothed frequencies."""
    total = 0.0
    for seen, new in zip(train.T, heldout.T, strict=True):
        counts = np.bincount(seen, minlength=vocabulary_size) + 1
        total -= np.log(counts / counts.sum())[new].mean()
    return float(total / train.shape[1])
