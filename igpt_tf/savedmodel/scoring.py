"""Nats at each pixel, of either kind of model."""

import numpy as np
import tensorflow as tf

NUM_FOLDS = 8


def surprise(model, tokens):
    """float32[B,T]: nats at each pixel.

    Of a causal model they add up to the image's negative log-likelihood. A masked model has no
    likelihood; here each pixel is predicted once from the 7/8 of the image outside its fold.
    """
    if model.causal:
        return _nats(model(tokens), tokens)
    folds = _folds(model.sequence_length)

    def body(fold, nats):
        masked = tf.broadcast_to(folds == fold, tf.shape(tokens))
        return fold + 1, tf.where(masked, _nats(model(tokens, masked), tokens), nats)

    nats = tf.zeros(tf.shape(tokens))
    nats.set_shape(tokens.shape)
    return tf.while_loop(lambda fold, _: fold < NUM_FOLDS, body, (0, nats))[1]


def _nats(logits, tokens):
    """float32[B,T,V], int32[B,T] -> float32[B,T]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tokens, logits)


def _folds(length: int) -> np.ndarray:
    """int32[T]: the fold of each pixel, always the same, as even as can be."""
    return (np.random.default_rng(0).permutation(length) % NUM_FOLDS).astype("int32")
