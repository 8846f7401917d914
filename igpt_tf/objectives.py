"""The two pretraining objectives; a model is trained on one of them, never on both.

An objective turns tokens into inputs, targets and weights, and gives nats per token, one number an
image. Losses are nats per palette token, not bits per RGB dimension: the palette is lossy.
"""

import gin
from keras import ops

from igpt_tf.errors import InputError


def token_nats(logits, tokens):
    """Cross-entropy of each token. float32[B,T,V], int32[B,T] -> float32[B,T] in nats."""
    return ops.sparse_categorical_crossentropy(tokens, logits, from_logits=True)


class Autoregressive:
    """Predict each token from those before it: the mean cross-entropy over all T positions.

    Source: paper, section 2.1, L_AR.
    """

    name = "autoregressive"
    causal = True

    def draws(self, *, seed: int, step, batch_size: int, sequence_length: int) -> dict:
        """Random inputs of a batch: none."""
        return {}

    def __call__(self, model, tokens):
        """Scores a batch. int32[B,T] -> nats per token float32[B]."""
        return ops.mean(token_nats(model(tokens), tokens), axis=1)

    def description(self) -> dict:
        """JSON-able; `objective_from_description` builds it again."""
        return {"name": self.name}


class Masked:
    """Predict hidden tokens from all others (the paper's BERT objective).

    Each position is hidden independently; its token embedding is multiplied by zero and its
    position embedding still added. The loss of an image is the mean over its hidden positions.

    Args:
        probability: Chance that a position is hidden, in (0, 1).

    Raises:
        InputError: `probability` is outside (0, 1).

    Source: paper, section 2.1, L_BERT; section 4.7 for 0.15.
    """

    name = "masked"
    causal = False

    def __init__(self, probability: float = 0.15):
        if not 0 < probability < 1:
            raise InputError(
                "the share of hidden positions lies between 0 and 1. "
                f"Received: probability={probability}"
            )
        self.probability = probability

    def draws(self, *, seed: int, step, batch_size: int, sequence_length: int) -> dict:
        """Random inputs of a batch, a pure function of (seed, step).

        Returns:
            {"masked": bool[B,T]}, at least one True a row, however small T is.
        """
        import tensorflow as tf

        chance = tf.random.stateless_uniform(
            (batch_size, sequence_length), seed=tf.stack([seed, tf.cast(step, "int32")])
        )
        least = tf.reduce_min(chance, axis=1, keepdims=True)
        return {"masked": (chance < self.probability) | (chance == least)}

    def __call__(self, model, tokens, masked):
        """Scores a batch. int32[B,T], bool[B,T] -> nats per hidden token float32[B]."""
        weights = ops.cast(masked, "float32")
        nats = token_nats(model(tokens, masked), tokens)
        return ops.sum(nats * weights, axis=1) / ops.sum(weights, axis=1)

    def description(self) -> dict:
        """JSON-able; `objective_from_description` builds it again."""
        return {"name": self.name, "probability": self.probability}


def objective_from_description(description: dict):
    """The objective a `description()` tells of. Raises: InputError on an unknown name."""
    kinds = {kind.name: kind for kind in (Autoregressive, Masked)}
    arguments = {key: value for key, value in description.items() if key != "name"}
    if description.get("name") not in kinds:
        raise InputError(f"unknown objective. Received: {description}")
    return kinds[description["name"]](**arguments)


@gin.register
def autoregressive() -> Autoregressive:
    """The autoregressive objective."""
    return Autoregressive()


@gin.register
def masked(*, probability: float = 0.15) -> Masked:
    """The masked (BERT) objective."""
    return Masked(probability)
