"""Elementwise chains compiled by XLA inside a step that is not.

On CPUs the products of TensorFlow's kernels are faster than XLA's, and a chain is faster as one
loop.
"""

import contextlib
import functools

import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.model import ImageGPT
from igpt_tf.model.gradients import elementwise_compiler


def worthwhile(model: ImageGPT) -> bool:
    """Whether a step of `model` is faster with such loops, and not short of memory.

    XLA has slow conversions of bfloat16 on CPUs, and its compiler takes about 50 MB.
    """
    plain = not runtime.has_accelerator() and model.compute_dtype == "float32"
    return plain and not model.remat and _xla_works()


def in_loops() -> contextlib.AbstractContextManager:
    """Within it, what the model has marked as `elementwise` is compiled."""
    return elementwise_compiler(_compiled)


@functools.cache
def _compiled(function):
    return tf.function(function, autograph=False, jit_compile=True)


def _xla_works() -> bool:
    """Not every build of TensorFlow has XLA."""
    try:
        _compiled(tf.identity)(tf.zeros([]))
    except tf.errors.OpError:
        return False
    return True
