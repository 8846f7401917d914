"""What can be painted: samples, completions, fillings. Functions of tensors, for any graph."""

import tensorflow as tf
from keras import ops

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.sampling.choosing import Brush, draw_uniforms
from igpt_tf.sampling.decoding import Decoder
from igpt_tf.sampling.inpainting import refill
from igpt_tf.sampling.panels import Panels

NUM_ROUNDS = 8


def sample(model: ImageGPT, num_images, *, seed, temperature=1.0, top_k=0, top_p=1.0, **options):
    """Paints new images. Image i of seed s is image 0 of seed s + i.

    Args:
        model: A causal `ImageGPT`.
        num_images: int or int32[], B.
        seed: int or int32[].
        temperature: Float, positive; 1 is the model's own.
        top_k: Choose among so many best colours; 0 for all.
        top_p: Choose among the best colours of so much probability; 1 for all.
        **options: `xla` and `cache_dtype` of `Decoder`.

    Returns:
        Tokens int32[B,T].

    Raises:
        InputError: The model is a masked one, which predicts pixels but has no order to paint in.

    Source: paper, section 2 (temperature 1, no truncation).
    """
    refuse_sampling(model)
    blank = tf.zeros([num_images, model.sequence_length], tf.int32)
    return complete(
        model, blank, 0, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, **options
    )


def refuse_sampling(model: ImageGPT) -> None:
    """Raises: InputError: The model is a masked one."""
    if not model.causal:
        raise InputError("a masked model cannot sample, only complete. Received: causal=False")


def complete(
    model: ImageGPT,
    tokens,
    num_given,
    *,
    seed,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    xla=False,
    cache_dtype=None,
    panels=None,
):
    """Keeps the first `num_given` raster pixels of each image and paints the rest.

    A causal model paints pixel after pixel; a masked one in-paints.

    Args:
        model: An `ImageGPT`.
        tokens: int32[B,T].
        num_given: int or int32[], 0..T.
        seed, temperature, top_k, top_p: As in `sample`.
        xla: See `Decoder`.
        cache_dtype: See `Decoder`; the model's own if None.
        panels: What `panels.cut` made of the model, to multiply with in the place of kernels.

    Returns:
        Tokens int32[B,T].
    """
    brush = Brush.of(temperature, top_k, top_p)
    tokens = tf.convert_to_tensor(tokens, tf.int32)
    seeds = _seeds(seed, tokens)
    if not model.causal:
        known = tf.broadcast_to(tf.range(model.sequence_length) < num_given, tf.shape(tokens))
        return refill(model, tokens, known, seeds, NUM_ROUNDS, brush)
    uniforms = draw_uniforms(seeds, model.sequence_length)
    matmul = Panels(model, panels).matmul if panels else ops.matmul
    decoder = Decoder(model, brush, uniforms, xla, cache_dtype or model.compute_dtype, matmul)
    return decoder.paint(tokens, num_given)


def inpaint(
    model: ImageGPT,
    tokens,
    known,
    *,
    seed,
    num_rounds=NUM_ROUNDS,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
):
    """Keeps known pixels exactly and fills the others, wherever they are.

    Args:
        model: A masked `ImageGPT`.
        tokens: int32[B,T].
        known: bool[B,T].
        num_rounds: int or int32[], at least 1.
        seed, temperature, top_k, top_p: As in `sample`.

    Returns:
        Tokens int32[B,T].

    Raises:
        InputError: The model is causal: it cannot see pixels that come later.
    """
    if model.causal:
        raise InputError("a causal model cannot in-paint, only complete. Received: causal=True")
    tokens = tf.convert_to_tensor(tokens, tf.int32)
    brush = Brush.of(temperature, top_k, top_p)
    known = tf.convert_to_tensor(known, tf.bool)
    return refill(model, tokens, known, _seeds(seed, tokens), num_rounds, brush)


def _seeds(seed, tokens):
    """int32[B]: each image's own."""
    return tf.convert_to_tensor(seed, tf.int32) + tf.range(tf.shape(tokens)[0])
