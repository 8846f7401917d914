"""Autoregressive decoding with cached keys and values.

An image is decoded in segments of whole rows. The cache of a segment has a static size that holds
its own positions and all earlier ones, so that attention never reads unused memory of later
segments. The given part of an image is processed in parallel; the rest in a loop over positions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import tensorflow as tf
from keras import ops

from igpt_tf.model import ImageGPT
from igpt_tf.model.attention import MASKED_SCORE, KeyValueCache


def random_uniforms(seeds, length: int, stream=0):
    """Random numbers that sample images; those of an image depend on its own seed only.

    Args:
        seeds: int32[B].
        length: T.
        stream: int or int32[]; different streams are independent.

    Returns:
        float32[B,T] in [0, 1), identical with and without XLA. XLA's generator gives the same bits
        but not the same floats, so the floats are made here from 23 bits each.
    """
    bits = tf.map_fn(
        lambda seed: tf.random.stateless_uniform(
            [length], tf.stack([seed, stream]), None, None, tf.uint32, alg="philox"
        ),
        seeds,
        fn_output_signature=tf.TensorSpec([length], tf.uint32),
    )
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32) * 2.0**-23


def choose_tokens(logits, uniforms, *, temperature, top_k, top_p):
    """Samples one token per row of logits.

    Args:
        logits: float32[B,V].
        uniforms: float32[B] in [0, 1).
        temperature: float32[], positive.
        top_k: int32[]; 0 keeps all tokens.
        top_p: float32[] in (0, 1]; 1 keeps all tokens.

    Returns:
        int32[B].
    """
    logits = logits / temperature
    # Truncation sorts the tokens, so it is skipped where it would keep them all.
    logits = tf.cond(
        (top_k > 0) | (top_p < 1.0), lambda: truncate(logits, top_k, top_p), lambda: logits
    )
    return invert_cdf(logits, uniforms)


def truncate(logits, top_k, top_p):
    """Removes unlikely tokens, first by rank, then by probability mass.

    Args:
        logits: float32[B,V].
        top_k: int32[]; 0 keeps all. Among equally likely tokens, the lower ones are kept.
        top_p: float32[]; keeps the smallest set of most likely tokens whose mass reaches it.

    Returns:
        float32[B,V], -inf where removed. The most likely token is always kept.
    """
    size = logits.shape[-1]
    ordered, order = tf.math.top_k(logits, size)
    kept = tf.range(size) < tf.where(top_k > 0, top_k, size)
    mass = tf.nn.softmax(tf.where(kept, ordered, float("-inf")))
    # Rounding may bring the cumulative sum to 1 before the last token: 1 must still keep all.
    kept &= (tf.cumsum(mass, axis=-1, exclusive=True) < top_p) | (top_p >= 1.0)
    kept = tf.gather(kept, tf.argsort(order), batch_dims=1)
    return tf.where(kept, logits, float("-inf"))


def invert_cdf(logits, uniforms):
    """Samples by inverting the cumulative distribution.

    Args:
        logits: float32[B,V].
        uniforms: float32[B] in [0, 1).

    Returns:
        int32[B], never a token of probability zero.
    """
    mass = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    cumulative = tf.cumsum(mass, axis=-1)
    reached = (cumulative > uniforms[:, None] * cumulative[:, -1:]) & (mass > 0)
    return tf.argmax(tf.cast(reached, tf.int32), axis=-1, output_type=tf.int32)


class GraphCacheOps:
    """Cache operations for any TensorFlow runtime: core operations only.

    `InplaceUpdate` writes into the buffer of its argument. That is safe here: the buffer comes from
    `Empty`, which is never folded into a constant, every reader of position t takes the tensor
    after the write, and the next write needs the token that those readers lead to.
    """

    max_segments = 8

    @staticmethod
    def allocate(shape, dtype):
        """Returns zeros of that shape in a buffer of their own."""
        return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=True)

    @staticmethod
    def write(cache, new, position):
        """Writes `new` float[B,heads,1,head_dim] at `position` of float[B,heads,S,head_dim]."""
        shape = tf.shape(cache)
        rows = tf.range(shape[0] * shape[1]) * shape[2] + position
        flat, new = (tf.reshape(x, [-1, x.shape[-1]]) for x in (cache, new))
        return tf.reshape(tf.raw_ops.InplaceUpdate(x=flat, i=rows, v=new), shape)


class XlaCacheOps:
    """Cache operations inside a jit-compiled function: static shapes, dynamic-update-slice."""

    max_segments = 4  # each is compiled on its own

    @staticmethod
    def allocate(shape, dtype):
        """Returns zeros of that shape."""
        return tf.zeros(shape, dtype)

    @staticmethod
    def write(cache, new, position):
        """Writes `new` float[B,heads,1,head_dim] at `position` of float[B,heads,S,head_dim]."""
        return ops.slice_update(cache, (0, 0, position, 0), new)


def segment_length(image_size: tuple[int, int], max_segments: int) -> int:
    """Number of positions in each of at most `max_segments` equal segments of whole rows."""
    height, width = image_size
    rows = next(r for r in range(1, height + 1) if height % r == 0 and height // r <= max_segments)
    return rows * width


def cache_bytes(architecture: dict, num_images: int, dtype: str = "float32") -> int:
    """Memory of the keys and values of `num_images` finished images, in bytes.

    Args:
        architecture: `ImageGPT.architecture`, also found in the metadata of a SavedModel.
        num_images: B.
        dtype: Type of the cache.
    """
    width = 2 * architecture["num_layers"] * architecture["hidden_dim"]
    length = math.prod(architecture["image_size"])
    return num_images * length * width * tf.as_dtype(dtype).size


def peak_bytes(architecture: dict, num_images: int, dtype: str = "float32") -> int:
    """Upper estimate of the memory that decoding takes besides the weights, in bytes.

    While the cache grows by a segment, the old and the new cache are both in memory. If the given
    parts of images differ, the float32 attention scores of a whole segment are too.
    """
    length = math.prod(architecture["image_size"])
    segment = segment_length(architecture["image_size"], GraphCacheOps.max_segments)
    scores = 4 * num_images * architecture["num_heads"] * segment * length
    return 2 * cache_bytes(architecture, num_images, dtype) + 3 * scores


class PackedKernels:
    """Copies of the blocks' kernels in packs of columns, for products with few rows.

    A CPU's matrix product copies a kernel, some columns at a time, into the order in which it reads
    them. In the kernel the rows of those columns lie a memory page apart, in a pack next to each
    other. With many rows the copy costs little; with one row per image it takes half the time.

    Args:
        model: An `ImageGPT`.
        packs: What `pack(model)` returned: as inputs of a compiled function, the packs follow the
            weights of a model in training.
    """

    _NUM_COLUMNS = 64
    _MAX_ROWS = 32  # with more rows, packs are no faster; a single row needs no copy

    def __init__(self, model: ImageGPT, packs: list):
        kernels = _block_kernels(model)
        self._packs = {id(kernel): one for kernel, one in zip(kernels, packs, strict=True)}

    @classmethod
    def are_faster(cls, num_rows: int) -> bool:
        """Whether a CPU multiplies this number of rows faster with packed kernels."""
        return 1 < num_rows <= cls._MAX_ROWS

    @classmethod
    def pack(cls, model: ImageGPT) -> list:
        """Returns float[N/P,K,P] of every kernel float[K,N] of the blocks, with P columns each."""
        packs = []
        for kernel in _block_kernels(model):
            rows, columns = kernel.shape
            size = next(p for p in range(min(cls._NUM_COLUMNS, columns), 0, -1) if columns % p == 0)
            split = ops.reshape(kernel, (rows, columns // size, size))
            packs.append(ops.transpose(split, (1, 0, 2)))
        return packs

    def matmul(self, x, kernel):
        """float[B,1,K] @ `kernel`, a variable float[K,N] of the model -> float[B,1,N]."""
        packs = self._packs[id(kernel)]
        rows = ops.transpose(x, (1, 0, 2))
        rows = ops.broadcast_to(rows, (packs.shape[0], *rows.shape[1:]))
        columns = ops.transpose(ops.matmul(rows, packs), (1, 0, 2))
        return ops.reshape(columns, (-1, 1, kernel.shape[1]))


def matmul_with_cast_kernels(model: ImageGPT) -> Callable:
    """Function (x, kernel) -> x @ kernel whose kernels are cast to the compute dtype here, once.

    In mixed precision the layers cast a kernel wherever they use it, which is once per pixel.
    """
    if model.compute_dtype == model.variable_dtype:
        return ops.matmul
    kernels = {
        id(kernel): ops.cast(kernel, model.compute_dtype) for kernel in _block_kernels(model)
    }
    return lambda x, kernel: ops.matmul(x, kernels[id(kernel)])


def _block_kernels(model):
    layers = [layer for block in model.blocks for layer in (block.attention, block.mlp)]
    return [kernel for layer in layers for kernel in layer.weights]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Decodes images with a causal model.

    Attributes:
        model: A causal `ImageGPT`.
        choose: Function (logits float32[B,V], uniforms float32[B]) -> tokens int32[B].
        uniforms: float32[B,T] in [0, 1), one number per position.
        xla: Whether this is traced inside a jit-compiled function. There, shapes must be static
            and the loop over segments is unrolled.
        cache_dtype: Type of cached keys and values; "bfloat16" halves their memory.
        matmul: Function that multiplies one position of each image with a kernel.
    """

    model: ImageGPT
    choose: Callable
    uniforms: tf.Tensor
    xla: bool
    cache_dtype: str
    matmul: Callable = ops.matmul

    @property
    def _cache_ops(self):
        return XlaCacheOps if self.xla else GraphCacheOps

    @property
    def _segment_length(self) -> int:
        return segment_length(self.model.image_size, self._cache_ops.max_segments)

    def decode(self, tokens, num_given):
        """Replaces all tokens from raster position `num_given` (int or int32[]) on. int32[B,T]."""
        caches = self._allocate(tf.shape(tokens)[0], 0)
        if not self.xla:
            caches = self._prefill(tokens, num_given, caches)
            return self._decode_segments(tokens, num_given, caches)
        for start in range(0, self.model.sequence_length, self._segment_length):
            caches = self._extend(start, num_given, tokens, caches)
            tokens, caches = self._decode_segment(start, num_given, tokens, caches)
        return tokens

    def _allocate(self, batch_size, length):
        """Unused keys and values of all blocks, a list of (float[B,heads,length,head_dim],) * 2."""
        heads = self.model.num_heads
        shape = (batch_size, heads, length, self.model.hidden_dim // heads)
        static = tf.TensorShape([tf.get_static_value(n) for n in shape])

        def allocate():
            return tf.ensure_shape(self._cache_ops.allocate(shape, self.cache_dtype), static)

        return [(allocate(), allocate()) for _ in self.model.blocks]

    def _prefill(self, tokens, num_given, caches):
        """Caches of all segments with given positions, computed one segment at a time.

        Images with the same given part as their neighbour share its computation: many completions
        of one image cost one prefill.
        """
        if tf.get_static_value(num_given) == 0:
            return caches
        first_of_group, group = unique_prefixes(tokens, num_given)
        distinct = tf.gather(tokens, first_of_group)
        empty = self._allocate(tf.size(first_of_group), 0)
        _, filled = tf.while_loop(
            lambda start, _: start < num_given,
            lambda start, caches: (
                start + self._segment_length,
                self._process_given(start, distinct, caches),
            ),
            (0, empty),
            shape_invariants=(tf.TensorShape([]), tf.nest.map_structure(_any_length, empty)),
        )
        # Copied only where it is necessary: the caches are most of the memory.
        filled = tf.cond(
            tf.size(first_of_group) < tf.size(group),
            lambda: tf.nest.map_structure(lambda cache: tf.gather(cache, group), filled),
            lambda: filled,
        )
        return tf.nest.map_structure(
            lambda cache, like: tf.ensure_shape(cache, _any_length(like)), filled, caches
        )

    def _decode_segments(self, tokens, num_given, caches):
        """Tokens int32[B,T] after decoding all segments that are not given as a whole."""
        total, length = self.model.sequence_length, self._segment_length

        def body(start, tokens, caches):
            is_prefilled = tf.shape(caches[0][0])[2] > start
            caches = tf.cond(is_prefilled, lambda: caches, lambda: self._grow(tokens, caches))
            return start + length, *self._decode_segment(start, num_given, tokens, caches)

        _, tokens, _ = tf.while_loop(
            lambda start, *_: start < total,
            body,
            (num_given // length * length, tokens, caches),
            shape_invariants=(
                tf.TensorShape([]),
                tokens.shape,
                tf.nest.map_structure(_any_length, caches),
            ),
        )
        return tokens

    def _grow(self, tokens, caches):
        """Caches with unused memory for one more segment."""
        unused = self._allocate(tf.shape(tokens)[0], self._segment_length)
        return tf.nest.map_structure(_append, caches, unused)

    def _extend(self, start, num_given, tokens, caches):
        """Caches with memory for the segment, filled where it is given."""
        if tf.get_static_value(num_given) == 0:
            return self._grow(tokens, caches)
        return tf.cond(
            num_given > start,
            lambda: self._process_given(start, tokens, caches),
            lambda: self._grow(tokens, caches),
        )

    def _decode_segment(self, start, num_given, tokens, caches):
        """Tokens int32[B,T] with one more segment decoded, and its caches."""
        length = self._segment_length
        end = start + length
        first = tf.maximum(start, num_given)
        previous = tf.gather(tokens, tf.maximum(first - 1, 0), axis=1)
        positions = start + tf.range(length)

        def body(position, previous, row, caches):
            logits, caches = self._next_logits(position, previous, caches)
            token = self.choose(logits, tf.gather(self.uniforms, position, axis=1))
            row = tf.where(positions == position, token[:, None], row)
            return position + 1, token, row, caches

        row = tf.slice(tokens, [0, start], [-1, length])
        _, _, row, caches = tf.while_loop(
            lambda position, *_: position < end, body, (first, previous, row, caches)
        )
        decoded = tf.concat([tokens[:, :start], row, tokens[:, end:]], axis=1)
        return tf.ensure_shape(decoded, tokens.shape), caches

    def _process_given(self, start, tokens, caches):
        """Caches with the segment's keys and values, computed in parallel from given tokens."""
        h = tf.slice(self.model.embed(tokens), [0, start, 0], [-1, self._segment_length, -1])
        positions = start + tf.range(self._segment_length)
        visible = tf.range(start + self._segment_length) <= positions[:, None]
        return self._run_blocks(h, caches, _append, visible, ops.matmul)[1]

    def _next_logits(self, position, previous, caches):
        """Logits float32[B,V] at `position`, after the token `previous` int32[B]."""
        model = self.model
        h = tf.gather(model.token_embedding, previous)
        h = tf.where(position == 0, model.sos, h) + model.position_embedding[position]
        visible = tf.range(tf.shape(caches[0][0])[2]) <= position
        h = tf.cast(h[:, None], model.compute_dtype)
        write = functools.partial(self._cache_ops.write, position=position)
        h, caches = self._run_blocks(h, caches, write, visible, self.matmul)
        return model.logits(h)[:, 0], caches

    def _run_blocks(self, h, caches, write, visible, matmul):
        """Runs new positions float[B,n,D] through all blocks; returns h and the new caches."""
        mask = tf.where(visible, 0.0, MASKED_SCORE)
        updated = []
        for block, (key, value) in zip(self.model.blocks, caches, strict=True):
            cache = KeyValueCache(key, value, write, mask)
            h = block(h, cache=cache, matmul=matmul)
            updated.append((cache.key, cache.value))
        return h, updated


def unique_prefixes(tokens, num_given):
    """Groups neighbouring images whose first tokens are equal.

    Args:
        tokens: int32[B,T].
        num_given: int or int32[], number of tokens that are compared.

    Returns:
        (index of the first image of each group int64[G], group of each image int32[B]).
    """
    given = tf.range(tf.shape(tokens)[1]) < num_given
    differs = tf.reduce_any((tokens[1:] != tokens[:-1]) & given, axis=1)
    differs = tf.concat([tf.ones_like(tokens[:1, 0], tf.bool), differs], axis=0)
    return tf.where(differs)[:, 0], tf.cumsum(tf.cast(differs, tf.int32)) - 1


def _append(cache, new):
    return tf.concat([cache, new], axis=2)


def _any_length(cache):
    return tf.TensorShape([*cache.shape[:2], None, cache.shape[3]])
