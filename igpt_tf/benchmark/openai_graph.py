"""OpenAI's published graph: its forward pass, and its sampling loop, which has no cache."""

import tensorflow as tf

from igpt_tf.benchmark.igpt_tensorflow import build, device_peak_bytes
from igpt_tf.benchmark.worker import Job
from igpt_tf.benchmark.workloads import random_tokens
from igpt_tf.model import ImageGPT

__all__ = ["device_peak_bytes", "logits", "sample"]

_NUM_PASSES = 4  # of the T forward passes of the loop; all cost the same


def sample(job: Job):
    """Sampling of images: for every pixel, the logits of the whole image."""
    model, tokens = build(job), tf.constant(random_tokens(job.shape))
    forward = tf.function(lambda tokens: logits(model, tokens))

    def run():
        for _ in range(_NUM_PASSES):
            tf.random.categorical(forward(tokens)[:, -1], 1).numpy()

    run.scale = job.shape.sequence_length / _NUM_PASSES
    return run


def logits(model: ImageGPT, tokens) -> tf.Tensor:
    """Logits of an `ImageGPT`, computed with the operations of the published graph.

    Queries, keys and values have a matrix each, with separate heads; all T^2 scores are computed
    and then masked; softmax, norm and quick GELU are sequences of elementary operations.

    Args:
        model: A causal `ImageGPT`.
        tokens: int32[B,T].

    Returns:
        float32[B,T,V].

    Source: openai/image-gpt `src/model.py`; its loop is in `src/run.py`.
    """
    h = model.embed(tokens)
    for block in model.blocks:
        h = h + _attention(block.attention, _norm(h, block.attention_norm))
        inner = tf.matmul(_norm(h, block.mlp_norm), block.mlp.input_kernel)
        h = h + tf.matmul(inner * tf.sigmoid(1.702 * inner), block.mlp.output_kernel)
    return tf.matmul(_norm(h, model.final_norm), model.output_embedding, transpose_b=True)


def _norm(x, layer):
    """float32[B,T,D] -> float32[B,T,D]."""
    square = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
    return x * tf.math.rsqrt(square + 1e-5) * layer.scale


def _attention(layer, x):
    """float32[B,T,D] -> float32[B,T,D]."""
    heads, (length, dim) = layer.num_heads, x.shape[1:]
    kernels = tf.split(tf.reshape(layer.qkv_kernel, (dim, 3 * heads, dim // heads)), 3, axis=1)
    query, key, value = (tf.einsum("bsf,fhe->bhse", x, kernel) for kernel in kernels)
    scores = tf.matmul(query, key, transpose_b=True) * (dim // heads) ** -0.5
    visible = tf.linalg.band_part(tf.ones((length, length)), -1, 0)
    scores = scores * visible - 1e10 * (1 - visible)
    weights = tf.exp(scores - tf.reduce_max(scores, axis=-1, keepdims=True))
    weights = weights / tf.reduce_sum(weights, axis=-1, keepdims=True)
    output = tf.reshape(layer.output_kernel, (heads, dim // heads, dim))
    return tf.einsum("bhse,hef->bsf", tf.matmul(weights, value), output)
