"""Painting with a masked (BERT) model: all unknown pixels at once, in rounds."""

import math

import tensorflow as tf

from igpt_tf.model import ImageGPT
from igpt_tf.sampling.choosing import Brush, draw_uniforms


def refill(model: ImageGPT, tokens, known, seeds, num_rounds, brush: Brush):
    """Fills unknown pixels, keeping in each round the predictions the model is surest of.

    After round r of R, n cos(pi r / 2R) of an image's n unknown pixels are left open.

    Args:
        model: A masked `ImageGPT`.
        tokens: int32[B,T]; ignored where unknown.
        known: bool[B,T], what is kept exactly.
        seeds: int32[B].
        num_rounds: int or int32[], at least 1.
        brush: How colours are chosen.

    Returns:
        int32[B,T].

    Source: Chang et al. 2022, "MaskGIT", section 3.2, without noise on the confidence.
    """
    num_unknown = tf.reduce_sum(tf.cast(~known, tf.float32), axis=1)

    def body(done, tokens, known):
        uniforms = draw_uniforms(seeds, model.sequence_length, draw=done)
        guesses, confidence = _guess(model, tokens, known, uniforms, brush)
        done += 1
        num_open = tf.floor(
            num_unknown * tf.cos(math.pi / 2 * tf.cast(done / num_rounds, "float32"))
        )
        kept = known | _surest(tf.where(known, math.inf, confidence), num_open)
        kept |= done >= num_rounds
        return done, tf.where(known, tokens, guesses), kept

    return tf.while_loop(lambda done, *_: done < num_rounds, body, (0, tokens, known))[1]


def _guess(model, tokens, known, uniforms, brush):
    """Drawn tokens int32[B,T] and their log-probabilities float32[B,T]."""
    logits = model(tf.where(known, tokens, 0), ~known)
    flat = tf.reshape(logits, [-1, model.vocabulary_size])
    guesses = tf.reshape(brush.choose(flat, tf.reshape(uniforms, [-1])), tf.shape(tokens))
    chances = tf.nn.log_softmax(logits)
    return guesses, tf.gather(chances, guesses, axis=2, batch_dims=2)


def _surest(confidence, num_open):
    """bool[B,T]: all but the `num_open` float32[B] least confident positions of each image."""
    ranks = tf.argsort(tf.argsort(confidence, axis=1), axis=1)
    return tf.cast(ranks, tf.float32) >= num_open[:, None]
