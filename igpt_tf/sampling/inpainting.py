"""In-painting with a masked (BERT) model: all unknown positions at once, in rounds."""

import math
from collections.abc import Callable

import tensorflow as tf

from igpt_tf.model import ImageGPT
from igpt_tf.sampling.decoding import random_uniforms


def inpaint_in_rounds(model: ImageGPT, tokens, known, seeds, num_rounds, choose: Callable):
    """Samples unknown tokens, keeping in each round the most confident predictions.

    After round r of R, n cos(pi r / 2R) of an image's n unknown tokens remain unknown.

    Args:
        model: A masked `ImageGPT`.
        tokens: int32[B,T]; ignored where unknown.
        known: bool[B,T]; these tokens are kept.
        seeds: int32[B].
        num_rounds: int or int32[], at least 1.
        choose: Function (logits float32[N,V], uniforms float32[N]) -> tokens int32[N].

    Returns:
        int32[B,T].

    Source: Chang et al. 2022, "MaskGIT", section 3.2, without noise on the confidence.
    """
    num_unknown = tf.reduce_sum(tf.cast(~known, tf.float32), axis=1)

    def body(num_done, tokens, known):
        uniforms = random_uniforms(seeds, model.sequence_length, stream=num_done)
        sampled, confidence = _sample_all(model, tokens, known, uniforms, choose)
        num_done += 1
        num_open = tf.floor(
            num_unknown * tf.cos(math.pi / 2 * tf.cast(num_done / num_rounds, "float32"))
        )
        kept = known | _most_confident(tf.where(known, math.inf, confidence), num_open)
        kept |= num_done >= num_rounds
        return num_done, tf.where(known, tokens, sampled), kept

    return tf.while_loop(lambda num_done, *_: num_done < num_rounds, body, (0, tokens, known))[1]


def _sample_all(model, tokens, known, uniforms, choose):
    """Samples every position: tokens int32[B,T] and their log-probabilities float32[B,T]."""
    logits = model(tf.where(known, tokens, 0), masked=~known)
    flat = tf.reshape(logits, [-1, model.vocabulary_size])
    sampled = tf.reshape(choose(flat, tf.reshape(uniforms, [-1])), tf.shape(tokens))
    return sampled, tf.gather(tf.nn.log_softmax(logits), sampled, axis=2, batch_dims=2)


def _most_confident(confidence, num_open):
    """bool[B,T]: all but the `num_open` float32[B] least confident positions of each image."""
    ranks = tf.argsort(tf.argsort(confidence, axis=1), axis=1)
    return tf.cast(ranks, tf.float32) >= num_open[:, None]
