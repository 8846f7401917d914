"""Sampling from a live model: checked arguments, compiled once, NumPy in and out."""

import functools

import numpy as np
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.sampling import painting, panels
from igpt_tf.sampling.params import PLAIN_SAMPLING, SamplingParams, check_limits, check_num_given
from igpt_tf.sampling.parts import count_parts, paint_in_parts


class Sampler:
    """Paints with a model whose weights may go on changing.

    A method compiles at its first call; with `jit_compile`, anew for each number of images. On CPUs
    many images are painted in parts, a core each, by XLA or after `runtime.use_one_thread_per_op`.

    Args:
        model: An `ImageGPT`.
        jit_compile: Compile with XLA.
        cache_dtype: Of cached keys and values; "bfloat16" halves them. The model's own if None.
    """

    def __init__(self, model: ImageGPT, *, jit_compile: bool = False, cache_dtype=None):
        self.model = model
        self._cuts_panels = jit_compile and not runtime.has_accelerator()
        self._most_parts = runtime.num_cores() if jit_compile else runtime.num_parallel_ops()
        compiled = functools.partial(
            tf.function,
            autograph=False,
            jit_compile=jit_compile or None,
            reduce_retracing=not jit_compile,
        )
        self._complete = compiled(
            functools.partial(painting.complete, model, xla=jit_compile, cache_dtype=cache_dtype)
        )
        self._inpaint = compiled(functools.partial(painting.inpaint, model))

    def sample(self, num_images: int, params: SamplingParams = PLAIN_SAMPLING) -> np.ndarray:
        """Paints new images, tokens int32[B,T].

        Args:
            num_images: B.
            params: How tokens are chosen.

        Raises:
            InputError: An argument is out of range, or the model is a masked one.
        """
        check_limits(num_images=num_images)
        painting.refuse_sampling(self.model)
        blank = np.zeros([num_images, self.model.sequence_length], "int32")
        return self._painted(blank, 0, params)

    def complete(
        self, tokens, num_given: int, params: SamplingParams = PLAIN_SAMPLING
    ) -> np.ndarray:
        """Keeps the first `num_given` raster pixels and paints the rest, tokens int32[B,T].

        Args:
            tokens: int[B,T].
            num_given: 0..T.
            params: As in `sample`.

        Raises:
            InputError: An argument is out of range.
        """
        check_num_given(num_given, self.model.sequence_length)
        num_given = tf.constant(num_given, tf.int32)
        return self._painted(self._checked(tokens), num_given, params)

    def _painted(self, tokens, num_given, params: SamplingParams) -> np.ndarray:
        cut = self._panels(len(tokens) // count_parts(len(tokens), self._most_parts))

        def paint(part: slice):
            chosen = _tensors(params.for_image(part.start))
            return self._complete(tf.constant(tokens[part]), num_given, **chosen, **cut).numpy()

        return paint_in_parts(paint, range(len(tokens)), self._most_parts)

    def _panels(self, num_images: int) -> dict:
        """The kernels cut for parts of so many images, where it pays; a copy of the weights."""
        if not (self._cuts_panels and self.model.causal and panels.worthwhile(num_images)):
            return {}
        return {"panels": panels.cut(self.model)}

    def inpaint(
        self,
        tokens,
        known,
        params: SamplingParams = PLAIN_SAMPLING,
        *,
        num_rounds: int = painting.NUM_ROUNDS,
    ) -> np.ndarray:
        """Keeps known pixels and fills the others, tokens int32[B,T]. Masked models only.

        Args:
            tokens: int[B,T].
            known: bool[B,T].
            num_rounds: More rounds paint slower and better.
            params: As in `sample`.

        Raises:
            InputError: An argument is out of range, or the model is a causal one.
        """
        check_limits(num_rounds=num_rounds)
        tokens = tf.constant(self._checked(tokens))
        known = tf.convert_to_tensor(known, tf.bool)
        num_rounds = tf.constant(num_rounds, tf.int32)
        return self._inpaint(tokens, known, num_rounds=num_rounds, **_tensors(params)).numpy()

    def _checked(self, tokens):
        tokens = np.asarray(tokens)
        length, size = self.model.sequence_length, self.model.vocabulary_size
        if tokens.ndim != 2 or tokens.shape[1] != length or not len(tokens):
            raise InputError(f"tokens must be [images, {length}]. Received: shape={tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= size:
            raise InputError(
                f"tokens must be 0 to {size - 1}. "
                f"Received: smallest={tokens.min()}, largest={tokens.max()}"
            )
        return tokens.astype("int32")


def _tensors(params: SamplingParams) -> dict:
    """Inputs of a compiled function; as tensors, other values do not compile it again."""
    dtypes = {"seed": tf.int32, "temperature": tf.float32, "top_k": tf.int32, "top_p": tf.float32}
    return {name: tf.constant(value, dtypes[name]) for name, value in params.as_dict().items()}
