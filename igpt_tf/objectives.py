"""Training objectives: what a model predicts and how a prediction is scored.

`Autoregressive` and `Masked` are the two pretraining objectives of the paper; `Joint` adds the
class labels of fine-tuning to one of them. A new pretraining objective is a class that implements
`Objective` and is decorated with `register_objective`.

Losses are nats per palette token, not bits per RGB dimension: the palette is lossy.
"""

from typing import Protocol

import gin
import numpy as np
from keras import ops

from igpt_tf.errors import InputError

_OBJECTIVES = {}
_NUM_FOLDS = 8


class Objective(Protocol):
    """A pretraining objective. The rest of the program uses these members only.

    Attributes:
        name: Name in gin files and in a SavedModel's metadata.
        causal: Whether the model may attend to earlier positions only; passed to `build_model`.
        uses_labels: Whether `__call__` takes the batch's "labels". False for pretraining.
        loss_name: What the loss counts, such as "nats per hidden token".
        score_kind: What the sum of `token_scores` over an image is: "likelihood" if it is the
            negative log-likelihood, else "pseudo-likelihood".
        generation: How a trained model completes an image: "raster order" or "in-painting".
    """

    name: str
    causal: bool
    uses_labels: bool
    loss_name: str
    score_kind: str
    generation: str

    def random_inputs(self, *, seed: int, step, batch_size: int, sequence_length: int) -> dict:
        """Random inputs of one batch as {name: tensor[B,...]}, a pure function of (seed, step)."""

    def __call__(self, model, tokens, **random_inputs):
        """Loss of each image. int32[B,T] -> nats per token float32[B]."""

    def nats(self, logits, tokens, **random_inputs):
        """Loss of each image, given logits float32[B,T,V]. Returns nats per token float32[B]."""

    def token_scores(self, model, tokens):
        """Deterministic score of each token. int32[B,T] -> nats float32[B,T]."""

    def get_config(self) -> dict:
        """JSON-able configuration, from which `objective_from_config` rebuilds the objective."""


def register_objective(objective_class):
    """Registers an `Objective` class by its `name`, for gin and for `objective_from_config`.

    Example:
        @register_objective
        class Diffusion:
            name = "diffusion"
            ...

        # In a gin file: train.objective = @diffusion()
    """
    _OBJECTIVES[objective_class.name] = objective_class
    return gin.register(objective_class.name)(objective_class)


def objective_from_config(config: dict) -> Objective:
    """Rebuilds an objective from `Objective.get_config()`.

    Raises:
        InputError: No objective has that name, or the arguments are wrong.
    """
    if not isinstance(config, dict):
        raise InputError(f"an objective is described by its get_config(). Received: {config!r}")
    arguments = {key: value for key, value in config.items() if key != "name"}
    if config.get("name") not in _OBJECTIVES:
        raise InputError(
            f"unknown objective; there are {', '.join(sorted(_OBJECTIVES))}. For one of your own, "
            f"import its module: --gin_param='import MODULE'. Received: {config}"
        )
    try:
        return _OBJECTIVES[config["name"]](**arguments)
    except TypeError as error:
        raise InputError(
            f"the objective's arguments are wrong ({error}). Received: {config}"
        ) from None


def objective_of_model(config: dict, model) -> Objective:
    """Rebuilds the objective that a model was trained on.

    Raises:
        InputError: As `objective_from_config`, or the objective needs another kind of model.
    """
    objective = objective_from_config(config)
    if objective.causal != model.causal:
        raise InputError(
            f"the objective {objective.name} needs a model with causal={objective.causal}; name "
            f"the one that the model was trained on. Received: objective={config}, "
            f"causal={model.causal}"
        )
    return objective


def token_nats(logits, tokens):
    """Cross-entropy of each token. float32[B,T,V], int32[B,T] -> nats float32[B,T]."""
    return ops.sparse_categorical_crossentropy(tokens, logits, from_logits=True)


def class_nats(logits, labels):
    """Cross-entropy of each label. float32[B,C], int32[B] -> nats float32[B]."""
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


@register_objective
class Autoregressive:
    """Predicts each token from the tokens before it: mean cross-entropy over all T positions.

    Source: paper, section 2.1, L_AR.
    """

    name = "autoregressive"
    causal = True
    uses_labels = False
    loss_name = "nats per token"
    score_kind = "likelihood"
    generation = "raster order"

    def random_inputs(self, *, seed: int, step, batch_size: int, sequence_length: int) -> dict:
        """No random inputs: {}."""
        return {}

    def __call__(self, model, tokens):
        """Loss of each image. int32[B,T] -> nats per token float32[B]."""
        return self.nats(model(tokens), tokens)

    def nats(self, logits, tokens):
        """Loss of each image, given logits float32[B,T,V]. Returns nats per token float32[B]."""
        return ops.mean(token_nats(logits, tokens), axis=1)

    def token_scores(self, model, tokens):
        """Nats of each token given those before it. int32[B,T] -> float32[B,T]."""
        return token_nats(model(tokens), tokens)

    def get_config(self) -> dict:
        """See `Objective.get_config`."""
        return {"name": self.name}


@register_objective
class Masked:
    """Predicts hidden tokens from all others (the paper's BERT objective).

    Each position is hidden independently: its token embedding is replaced by zero, its position
    embedding is kept. The loss of an image is the mean over its hidden positions.

    Args:
        probability: Probability that a position is hidden, in (0, 1).

    Raises:
        InputError: `probability` is outside (0, 1).

    Source: paper, section 2.1, L_BERT; section 4.7 for 0.15.
    """

    name = "masked"
    causal = False
    uses_labels = False
    loss_name = "nats per hidden token"
    score_kind = "pseudo-likelihood"
    generation = "in-painting"

    def __init__(self, probability: float = 0.15):
        if not 0 < probability < 1:
            raise InputError(
                f"the probability of a mask must lie between 0 and 1. Received: {probability=}"
            )
        self.probability = probability

    def random_inputs(self, *, seed: int, step, batch_size: int, sequence_length: int) -> dict:
        """The hidden positions {"masked": bool[B,T]}, at least one per image."""
        import tensorflow as tf

        uniform = tf.random.stateless_uniform(
            (batch_size, sequence_length), seed=tf.stack([seed, tf.cast(step, "int32")])
        )
        smallest = tf.reduce_min(uniform, axis=1, keepdims=True)
        return {"masked": (uniform < self.probability) | (uniform == smallest)}

    def __call__(self, model, tokens, masked):
        """Loss of each image. int32[B,T], bool[B,T] -> nats per hidden token float32[B]."""
        return self.nats(model(tokens, masked), tokens, masked)

    def nats(self, logits, tokens, masked):
        """Loss of each image, given logits float32[B,T,V]: nats per hidden token float32[B]."""
        weights = ops.cast(masked, "float32")
        return ops.sum(token_nats(logits, tokens) * weights, axis=1) / ops.sum(weights, axis=1)

    def token_scores(self, model, tokens):
        """Nats of each token given the 7/8 of the image outside its fold. int32[B,T] -> [B,T].

        A masked model has no likelihood. The positions are divided into 8 fixed random folds, and
        each fold is predicted once from the others.
        """
        import tensorflow as tf

        folds = _folds(model.sequence_length)

        def score_fold(fold, scores):
            masked = tf.broadcast_to(folds == fold, tf.shape(tokens))
            return fold + 1, tf.where(masked, token_nats(model(tokens, masked), tokens), scores)

        scores = tf.zeros(tf.shape(tokens))
        scores.set_shape(tokens.shape)
        # A loop in the graph: a Python loop would put 8 copies of the model into it.
        return tf.while_loop(lambda fold, _: fold < _NUM_FOLDS, score_fold, (0, scores))[1]

    def get_config(self) -> dict:
        """See `Objective.get_config`."""
        return {"name": self.name, "probability": self.probability}


def _folds(sequence_length: int) -> np.ndarray:
    """Fold of each position, int32[T] in [0, 8): a constant permutation, sizes differ by one."""
    permutation = np.random.default_rng(0).permutation(sequence_length)
    return (permutation % _NUM_FOLDS).astype("int32")


@gin.register("joint")
class Joint:
    """Fine-tuning: a pretraining loss plus the loss of the class, from one forward pass.

    Args:
        generative: The objective on which the model was pretrained.
        generative_weight: Weight of its loss, 0 or more; 0 trains on L_CLF alone.
        classification_weight: Weight of the class' cross-entropy, above 0.
        dropout_dim: Number of features per image for which `random_inputs` has noise; 0 if there
            is no dropout.

    Raises:
        InputError: A weight is out of range.

    Source: paper, section 2.3: L_GEN + L_CLF.
    """

    uses_labels = True

    def __init__(
        self,
        generative: Objective,
        generative_weight: float = 1.0,
        classification_weight: float = 1.0,
        dropout_dim: int = 0,
    ):
        if generative_weight < 0 or classification_weight <= 0:
            raise InputError(
                "the weight of the generative loss must be 0 or more, that of the classification "
                f"loss above 0. Received: {generative_weight=}, {classification_weight=}"
            )
        self.generative = generative
        self.dropout_dim = dropout_dim
        self.generative_weight = generative_weight
        self.classification_weight = classification_weight

    def random_inputs(self, *, seed: int, step, batch_size: int, sequence_length: int) -> dict:
        """Those of the generative objective, and "dropout_noise" float32[B,D] with dropout."""
        inputs = self.generative.random_inputs(
            seed=seed, step=step, batch_size=batch_size, sequence_length=sequence_length
        )
        if self.dropout_dim:
            import tensorflow as tf

            inputs["dropout_noise"] = tf.random.stateless_uniform(
                # Another stream than that of the masks, which begins with the same numbers.
                (batch_size, self.dropout_dim),
                seed=tf.stack([~seed, tf.cast(step, "int32")]),
            )
        return inputs

    def __call__(self, model, tokens, labels, dropout_noise=None, **random_inputs):
        """Weighted loss float32[B] of a `Classifier` on tokens int32[B,T] and labels int32[B]."""
        h, class_logits = model.hidden_and_class_logits(
            tokens, dropout_noise=dropout_noise, **random_inputs
        )
        loss = self.classification_weight * class_nats(class_logits, labels)
        if self.generative_weight:
            nats = self.generative.nats(model.network.token_logits(h), tokens, **random_inputs)
            loss = loss + self.generative_weight * nats
        return loss

    def get_config(self) -> dict:
        """JSON-able configuration: the two weights."""
        return {
            "generative_weight": self.generative_weight,
            "classification_weight": self.classification_weight,
        }
