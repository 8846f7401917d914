"""Samples, completions and in-paintings: graph functions, and `Sampler` for a live model."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.sampling.decoding import (
    Decoder,
    PackedKernels,
    choose_tokens,
    matmul_with_cast_kernels,
    random_uniforms,
)
from igpt_tf.sampling.inpainting import inpaint_in_rounds
from igpt_tf.sampling.params import (
    PLAIN_SAMPLING,
    SamplingParams,
    check_limits,
    check_num_given,
)

NUM_ROUNDS = 8  # of in-painting
_MIN_IMAGES_PER_BRANCH = 8  # each branch reads all weights for every position


def sample(model: ImageGPT, num_images, *, seed, temperature=1.0, top_k=0, top_p=1.0, **options):
    """Samples new images; usable inside any `tf.function`.

    Args:
        model: A causal `ImageGPT`.
        num_images: int or int32[], B.
        seed: int or int32[]; image i is sampled with seed + i.
        temperature: float or float32[], see `SamplingParams`.
        top_k: int or int32[], see `SamplingParams`.
        top_p: float or float32[], see `SamplingParams`.
        **options: Options of `complete`.

    Returns:
        Tokens int32[B,T].

    Raises:
        InputError: The model is a masked one, which has no order of positions to sample in.

    Source: paper, section 2 (temperature 1, no truncation).
    """
    check_can_sample(model)
    tokens = tf.zeros([num_images, model.sequence_length], tf.int32)
    params = {"seed": seed, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return complete(model, tokens, 0, **params, **options)


def check_can_sample(model: ImageGPT) -> None:
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
    packed_kernels=None,
):
    """Keeps the first `num_given` raster pixels of each image and samples the rest.

    A causal model decodes position by position; a masked one in-paints. Usable inside any
    `tf.function`.

    Args:
        model: An `ImageGPT`.
        tokens: int32[B,T].
        num_given: int or int32[], 0..T.
        seed, temperature, top_k, top_p: As in `sample`.
        xla: See `Decoder`.
        cache_dtype: See `Decoder`; None for the model's own type.
        packed_kernels: Result of `PackedKernels.pack`, or None.

    Returns:
        Tokens int32[B,T].
    """
    tokens = tf.convert_to_tensor(tokens, tf.int32)
    seeds = _image_seeds(seed, tokens)
    choose = _chooser(temperature, top_k, top_p)
    if not model.causal:
        known = tf.broadcast_to(tf.range(model.sequence_length) < num_given, tf.shape(tokens))
        return inpaint_in_rounds(model, tokens, known, seeds, NUM_ROUNDS, choose)
    uniforms = random_uniforms(seeds, model.sequence_length)
    if packed_kernels:
        matmul = PackedKernels(model, packed_kernels).matmul
    else:
        matmul = matmul_with_cast_kernels(model)
    decoder = Decoder(model, choose, uniforms, xla, cache_dtype or model.compute_dtype, matmul)
    return decoder.decode(tokens, num_given)


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
    """Keeps known pixels and samples all others; usable inside any `tf.function`.

    Args:
        model: A masked `ImageGPT`.
        tokens: int32[B,T].
        known: bool[B,T].
        num_rounds: int or int32[], at least 1.
        seed, temperature, top_k, top_p: As in `sample`.

    Returns:
        Tokens int32[B,T].

    Raises:
        InputError: The model is causal, so that it does not see later pixels.
    """
    if model.causal:
        raise InputError("a causal model cannot in-paint, only complete. Received: causal=True")
    tokens = tf.convert_to_tensor(tokens, tf.int32)
    known = tf.convert_to_tensor(known, tf.bool)
    seeds = _image_seeds(seed, tokens)
    choose = _chooser(temperature, top_k, top_p)
    return inpaint_in_rounds(model, tokens, known, seeds, num_rounds, choose)


def _image_seeds(seed, tokens):
    """int32[B]: seed + i for image i."""
    return tf.convert_to_tensor(seed, tf.int32) + tf.range(tf.shape(tokens)[0])


def _chooser(temperature, top_k, top_p) -> Callable:
    return functools.partial(
        choose_tokens,
        temperature=tf.convert_to_tensor(temperature, tf.float32),
        top_k=tf.convert_to_tensor(top_k, tf.int32),
        top_p=tf.convert_to_tensor(top_p, tf.float32),
    )


class Sampler:
    """Samples with a model whose weights may change between calls, as in training.

    A method compiles at its first call; with `jit_compile`, again for each number of images. On
    CPUs many images are sampled in parallel branches, one per core, with `jit_compile` or after
    `runtime.use_one_thread_per_op`.

    Args:
        model: An `ImageGPT`.
        jit_compile: Whether to compile with XLA.
        cache_dtype: Type of cached keys and values; "bfloat16" halves their memory. None for the
            model's own type.

    Example:
        >>> sampler = Sampler(model)
        >>> tokens = sampler.sample(4, SamplingParams(seed=1, top_p=0.9))
        >>> tokens = sampler.complete(tokens, model.sequence_length // 2)
    """

    def __init__(self, model: ImageGPT, *, jit_compile: bool = False, cache_dtype=None):
        self.model = model
        self._packs_kernels = jit_compile and not runtime.has_accelerator() and model.causal
        self._max_branches = runtime.num_cores() if jit_compile else runtime.num_parallel_ops()
        compile_function = functools.partial(
            tf.function,
            autograph=False,
            jit_compile=jit_compile or None,
            reduce_retracing=not jit_compile,
        )
        self._complete = compile_function(
            functools.partial(complete, model, xla=jit_compile, cache_dtype=cache_dtype)
        )
        self._inpaint = compile_function(functools.partial(inpaint, model))

    def sample(self, num_images: int, params: SamplingParams = PLAIN_SAMPLING) -> np.ndarray:
        """Samples new images.

        Args:
            num_images: B.
            params: How tokens are chosen.

        Returns:
            Tokens int32[B,T].

        Raises:
            InputError: `num_images` is out of range, or the model is a masked one.
        """
        check_limits(num_images=num_images)
        check_can_sample(self.model)
        tokens = np.zeros([num_images, self.model.sequence_length], "int32")
        return self._complete_in_branches(tokens, 0, params)

    def complete(
        self, tokens, num_given: int, params: SamplingParams = PLAIN_SAMPLING
    ) -> np.ndarray:
        """Keeps the first `num_given` raster pixels of each image and samples the rest.

        Args:
            tokens: int[B,T].
            num_given: 0..T.
            params: How tokens are chosen.

        Returns:
            Tokens int32[B,T].

        Raises:
            InputError: The tokens do not fit the model, or `num_given` is out of range.
        """
        check_num_given(num_given, self.model.sequence_length)
        # As a tensor, another value does not compile the function again.
        num_given = tf.constant(num_given, tf.int32)
        return self._complete_in_branches(self._check_tokens(tokens), num_given, params)

    def _complete_in_branches(self, tokens, num_given, params) -> np.ndarray:
        # Packed again in each call, because the weights may have changed.
        branch_size = len(tokens) // count_branches(len(tokens), self._max_branches)
        packs = self._packs_kernels and PackedKernels.are_faster(branch_size)
        options = {"packed_kernels": PackedKernels.pack(self.model)} if packs else {}

        def complete_branch(images: slice) -> np.ndarray:
            inputs = _as_tensors(params.for_image(images.start))
            return self._complete(tf.constant(tokens[images]), num_given, **inputs, **options)

        return run_in_branches(complete_branch, range(len(tokens)), self._max_branches)

    def inpaint(
        self,
        tokens,
        known,
        params: SamplingParams = PLAIN_SAMPLING,
        *,
        num_rounds: int = NUM_ROUNDS,
    ) -> np.ndarray:
        """Keeps known pixels and samples all others. For masked models only.

        Args:
            tokens: int[B,T].
            known: bool[B,T].
            params: How tokens are chosen.
            num_rounds: More rounds take longer and give better images.

        Returns:
            Tokens int32[B,T].

        Raises:
            InputError: An argument is out of range, or the model is causal.
        """
        check_limits(num_rounds=num_rounds)
        tokens = tf.constant(self._check_tokens(tokens))
        known = tf.convert_to_tensor(known, tf.bool)
        num_rounds = tf.constant(num_rounds, tf.int32)
        return self._inpaint(tokens, known, num_rounds=num_rounds, **_as_tensors(params)).numpy()

    def _check_tokens(self, tokens) -> np.ndarray:
        tokens = np.asarray(tokens)
        length, size = self.model.sequence_length, self.model.vocabulary_size
        if tokens.ndim != 2 or tokens.shape[1] != length or not len(tokens):
            raise InputError(f"tokens must be [images, {length}]. Received: shape={tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= size:
            raise InputError(
                f"tokens must be 0 to {size - 1}. Received: min={tokens.min()}, max={tokens.max()}"
            )
        return tokens.astype("int32")


def _as_tensors(params: SamplingParams) -> dict:
    """Inputs of a compiled function; as tensors, other values do not compile it again."""
    dtypes = {"seed": tf.int32, "temperature": tf.float32, "top_k": tf.int32, "top_p": tf.float32}
    return {name: tf.constant(value, dtypes[name]) for name, value in params.as_dict().items()}


def count_branches(num_images: int, max_branches: int) -> int:
    """Number of equal branches, at most `max_branches`; 1 where there is a GPU or TPU."""
    if runtime.has_accelerator():
        return 1
    return runtime.largest_divisor(
        num_images, min(max_branches, num_images // _MIN_IMAGES_PER_BRANCH)
    )


def run_in_branches(function: Callable, images: range, max_branches: int) -> np.ndarray:
    """Concatenates the results of a function that runs on parts of the images in parallel.

    Sampling is a sequence of small products, which a second core hardly accelerates; two sequences
    side by side keep two cores busy. An image depends on its own seed, so its branch is irrelevant.

    Args:
        function: Maps a slice of `images` to an array or tensor; called by several threads.
        images: Indices of all images.
        max_branches: Upper limit of the number of branches.
    """
    count = count_branches(len(images), max_branches)
    size = len(images) // count
    branches = [slice(start, start + size) for start in images[::size]]
    with ThreadPoolExecutor(count) as pool:
        return np.concatenate([np.asarray(part) for part in pool.map(function, branches)])
