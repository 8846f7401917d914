"""The two pretraining objectives, of which a model is trained on one; and that of fine-tuning.

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
    labelled = False

    def draws(self, *, seed: int, step, batch_size: int, sequence_length: int) -> dict:
        """Random inputs of a batch: none."""
        return {}

    def __call__(self, model, tokens):
        """Scores a batch. int32[B,T] -> nats per token float32[B]."""
        return self.nats(model(tokens), tokens)

    def nats(self, logits, tokens):
        """Nats per token float32[B] of predictions float32[B,T,V]."""
        return ops.mean(token_nats(logits, tokens), axis=1)

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
    labelled = False

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
        return self.nats(model(tokens, masked), tokens, masked)

    def nats(self, logits, tokens, masked):
        """Nats per hidden token float32[B] of predictions float32[B,T,V]."""
        weights = ops.cast(masked, "float32")
        return ops.sum(token_nats(logits, tokens) * weights, axis=1) / ops.sum(weights, axis=1)

    def description(self) -> dict:
        """JSON-able; `objective_from_description` builds it again."""
        return {"name": self.name, "probability": self.probability}


class Joint:
    """Fine-tuning: the pretraining objective and the class, from one pass through the network.

    Args:
        generative: `Autoregressive` or `Masked`, the one the model was pretrained on.
        generative_weight: Of its loss, 0 or more; 0 leaves L_CLF alone.
        classification_weight: Of the cross-entropy of the class, above 0.

    Raises:
        InputError: A weight is out of range.

    Source: paper, section 2.3: L_GEN + L_CLF.
    """

    labelled = True

    def __init__(
        self, generative, generative_weight: float = 1.0, classification_weight: float = 1.0
    ):
        if generative_weight < 0 or classification_weight <= 0:
            raise InputError(
                "the weight of the generative loss is 0 or more, that of the classification above "
                f"0. Received: {generative_weight=}, {classification_weight=}"
            )
        self.generative = generative
        self.causal = generative.causal
        self.draws = generative.draws
        self.generative_weight = generative_weight
        self.classification_weight = classification_weight

    def __call__(self, model, tokens, labels, **draws):
        """Scores a batch: `Classifier`, int32[B,T], int32[B] -> the weighted sum float32[B]."""
        h, classes = model.hidden_and_classes(tokens, **draws)
        loss = self.classification_weight * class_nats(classes, labels)
        if self.generative_weight:
            nats = self.generative.nats(model.network.token_logits(h), tokens, **draws)
            loss = loss + self.generative_weight * nats
        return loss

    def description(self) -> dict:
        """JSON-able: the two weights."""
        return {
            "generative_weight": self.generative_weight,
            "classification_weight": self.classification_weight,
        }


def class_nats(logits, labels):
    """Cross-entropy of each label. float32[B,C], int32[B] -> float32[B] in nats."""
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def objective_from_description(description: dict):
    """The objective a `description()` tells of. Raises: InputError on any other description."""
    kinds = {kind.name: kind for kind in (Autoregressive, Masked)}
    arguments = {key: value for key, value in description.items() if key != "name"}
    if description.get("name") not in kinds:
        raise InputError(f"unknown objective. Received: {description}")
    try:
        return kinds[description["name"]](**arguments)
    except TypeError as error:
        raise InputError(
            f"not an objective's arguments ({error}). Received: {description}"
        ) from None


@gin.register
def autoregressive() -> Autoregressive:
    """The autoregressive objective."""
    return Autoregressive()


@gin.register
def masked(*, probability: float = 0.15) -> Masked:
    """The masked (BERT) objective."""
    return Masked(probability)


@gin.register
def joint(
    *, generative, generative_weight: float = 1.0, classification_weight: float = 1.0
) -> Joint:
    """`Joint`; the weights from gin, `generative` from the model."""
    return Joint(generative, generative_weight, classification_weight)
