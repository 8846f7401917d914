"""Multi-head self-attention without biases, computed in blocks of queries."""

from typing import NamedTuple

import keras
from keras import ops

from igpt_tf.model.gradients import delay, swap_last_axes, with_gradient

# A block of queries attends to its own prefix of keys only: with n blocks, the causal square costs
# (n + 1) / 2n of the whole square, and the scores in memory, float32[B,heads,block,T], grow with T.
# Measured on 2 AVX-512 cores, attention of one 64x64 image (8 heads of width 32), forward and
# backward, per core: blocks of 64, 128, 256, 512, 1024 queries run at 39, 42, 43, 41, 37 GFLOP/s.
# Short sequences have four blocks, unless these would be smaller than 64 queries. Blocks are
# multiples of 32 queries, because matrix units of GPUs and TPUs are slow with sizes such as 196, a
# quarter of a 28x28 image.
_MAX_BLOCK_SIZE = 256
_BLOCK_MULTIPLE = 32
_MIN_BLOCK_SIZE = 64
_MIN_NUM_BLOCKS = 4
MASKED_SCORE = -1e9  # finite in every dtype; the reference's 1e10 is infinite in float16


@keras.saving.register_keras_serializable("igpt_tf")
class SelfAttention(keras.layers.Layer):
    """Dense multi-head self-attention, causal or bidirectional.

    One fused kernel projects to queries, keys and values. No biases, no dropout.

    Args:
        num_heads: Number of heads; must divide D.
        num_layers: Number of blocks L of the network, for the initial scale of the output kernel.
        causal: Whether position i attends to positions <= i only.

    Source: openai/image-gpt `src/model.py`, `attn`. Initial standard deviations: 1/sqrt(D) for
    queries, keys and values, 1/sqrt(D L) for the output kernel.
    """

    def __init__(self, num_heads: int, num_layers: int, causal: bool, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.causal = causal

    def build(self, input_shape):
        dim = input_shape[-1]
        self.qkv_kernel = self.add_weight(
            name="qkv_kernel",
            shape=(dim, 3 * dim),
            initializer=keras.initializers.RandomNormal(stddev=dim**-0.5),
        )
        self.output_kernel = self.add_weight(
            name="output_kernel",
            shape=(dim, dim),
            initializer=keras.initializers.RandomNormal(stddev=(dim * self.num_layers) ** -0.5),
        )

    def call(self, x, norm, cache=None, matmul=None):
        """Returns attention(norm(x)).

        Args:
            x: float[B,T,D].
            norm: The `RMSNorm` to apply to `x` first.
            cache: `KeyValueCache` of the positions before `x`, or None if there are none.
            matmul: See `Block.call`.

        Returns:
            float[B,T,D].
        """
        kernel = self.qkv_kernel
        qkv = norm.matmul(x, kernel) if matmul is None else matmul(norm(x), kernel)
        query, key, value = self._split_qkv(qkv)
        if cache is None:
            merged = attend(query, key, value, causal=self.causal)
        else:
            key, value = cache.update(key, value)
            query = query * query.shape[-1] ** -0.5
            weights = _attention_weights(query, key, cache.mask)
            merged = _merge_heads(ops.matmul(ops.cast(weights, value.dtype), value))
        return (matmul or ops.matmul)(merged, self.output_kernel)

    def _split_qkv(self, qkv):
        """float[B,T,3D] -> query, key, value, each float[B,heads,T,head_dim]."""
        _, length, width = qkv.shape
        head_dim = width // 3 // self.num_heads
        if length == 1:  # a transposition moves no number, and a reshape costs nothing
            return ops.unstack(ops.reshape(qkv, (-1, 3, self.num_heads, 1, head_dim)), axis=1)
        qkv = ops.reshape(qkv, (-1, length, 3, self.num_heads, head_dim))
        return ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), axis=0)

    def get_config(self):
        sizes = {"num_heads": self.num_heads, "num_layers": self.num_layers, "causal": self.causal}
        return {**super().get_config(), **sizes}


class KeyValueCache:
    """Keys and values of one block, for decoding position by position.

    Args:
        key: float[B,heads,S,head_dim], of any dtype: bfloat16 halves the memory.
        value: float[B,heads,S,head_dim].
        write: Function (cached, new) -> cached that stores the keys or values
            float[B,heads,n,head_dim] of n new positions.
        mask: float32[n,S] or float32[S], added to the scores: 0 where a new position attends to a
            cached one, `MASKED_SCORE` elsewhere.
    """

    def __init__(self, key, value, write, mask):
        self.key, self.value = key, value
        self.mask = mask
        self._write = write

    def update(self, key, value):
        """Stores new keys and values; returns all of them in the dtype of the new ones."""
        self.key = self._write(self.key, ops.cast(key, self.key.dtype))
        self.value = self._write(self.value, ops.cast(value, self.value.dtype))
        return ops.cast(self.key, key.dtype), ops.cast(self.value, value.dtype)


def attend(query, key, value, *, causal: bool):
    """Softmax attention; the softmax runs in float32 whatever the compute dtype.

    The backward pass computes the attention weights of each block again, so that memory grows with
    T and not with T^2.

    Args:
        query: float[B,heads,T,head_dim].
        key: float[B,heads,T,head_dim].
        value: float[B,heads,T,head_dim].
        causal: Whether position i attends to positions <= i only.

    Returns:
        float[B,T,D], the heads side by side.
    """

    @with_gradient
    def blockwise(query, key, value):
        blocks = query_blocks(query.shape[2], causal)
        merged = _merge_heads(_forward(query, key, value, blocks, causal))

        def gradient(upstream):
            return _backward(query, key, value, merged, upstream, blocks, causal)

        return merged, gradient

    return blockwise(query, key, value)


def _attention_weights(query, key, mask=None):
    """Softmax over the keys, float32[B,heads,n,S]; `query` is already scaled."""
    scores = ops.cast(ops.matmul(query, swap_last_axes(key)), "float32")
    # Adding a mask is cheaper than selecting, which would broadcast it to every image and head.
    return ops.softmax(scores if mask is None else scores + mask)


def _merge_heads(heads):
    """float[B,heads,T,head_dim] -> float[B,T,D]."""
    _, num_heads, length, head_dim = heads.shape
    if length > 1:  # the heads of a single position are side by side already
        heads = ops.transpose(heads, (0, 2, 1, 3))
    return ops.reshape(heads, (-1, length, num_heads * head_dim))


def _split_heads(merged, num_heads):
    """float[B,T,D] -> float[B,heads,T,head_dim]."""
    _, length, dim = merged.shape
    heads = ops.reshape(merged, (-1, length, num_heads, dim // num_heads))
    return ops.transpose(heads, (0, 2, 1, 3))


class QueryBlock(NamedTuple):
    """Consecutive queries and the keys that they attend to.

    Attributes:
        start: Position of the first query.
        size: Number of queries.
        num_keys: The queries attend to keys 0 .. num_keys - 1.
    """

    start: int
    size: int
    num_keys: int


def query_blocks(length: int, causal: bool) -> list[QueryBlock]:
    """The blocks of queries into which attention divides a sequence."""
    share = -(-length // (_MIN_NUM_BLOCKS * _BLOCK_MULTIPLE)) * _BLOCK_MULTIPLE
    size = min(_MAX_BLOCK_SIZE, max(_MIN_BLOCK_SIZE, share))
    blocks = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        blocks.append(QueryBlock(start, stop - start, stop if causal else length))
    return blocks


def _causal_mask(size: int, until):
    """float32[size,size]: query i of a block attends to keys 0 .. i of the same block.

    The positions depend on the tensor `until`, which keeps masks out of the compiled program: XLA
    would store the masks of constant positions, 5 MB per layer of 32x32 images.
    """
    keys = ops.arange(size, dtype="float32")
    queries = keys + ops.cast(delay(0.0, until=until), "float32")
    return ops.where(keys <= queries[:, None], 0.0, MASKED_SCORE)


def _block_mask(causal_mask, block):
    """float32[size,num_keys] of a block, which sees all keys before its own; None for no mask."""
    if causal_mask is None:
        return None
    own_keys = causal_mask[: block.size, : block.size]
    return ops.pad(own_keys, ((0, 0), (block.start, 0)))


def _split_at_blocks(x, blocks) -> list:
    """Splits float[B,heads,n,head_dim] along its positions at the starts of the blocks."""
    starts = [block.start for block in blocks[1:] if block.start < x.shape[2]]
    return ops.split(x, starts, axis=2) if starts else [x]


def _visible(x, block):
    """The positions of float[B,heads,T,head_dim] that the block attends to."""
    return x if block.num_keys == x.shape[2] else x[:, :, : block.num_keys]


def _forward(query, key, value, blocks, causal):
    """float[B,heads,T,head_dim], one block of queries after the other."""
    scale = query.shape[-1] ** -0.5
    mask = _causal_mask(blocks[0].size, until=query) if causal else None
    heads = []
    for rows, block in zip(_split_at_blocks(query, blocks), blocks, strict=True):
        # Without the delay a scheduler may start all blocks at once and hold all their scores.
        rows = rows * (delay(scale, until=heads[-1]) if heads else scale)
        weights = _attention_weights(rows, _visible(key, block), _block_mask(mask, block))
        heads.append(ops.matmul(ops.cast(weights, value.dtype), _visible(value, block)))
    return ops.concatenate(heads, axis=2)


def _backward(query, key, value, merged, upstream, blocks, causal):
    """Gradients of query, key and value, one block of queries after the other.

    The gradient of the softmax is weights * (slopes - sum(weights * slopes)), where slopes are the
    gradients of the weights. That sum over the keys equals the sum of output * upstream over
    head_dim, which is computed once, without [T,T] tensors.
    """
    _, num_heads, length, head_dim = query.shape
    scale = head_dim**-0.5
    sums = ops.cast(merged, "float32") * ops.cast(upstream, "float32")
    sums = ops.sum(ops.reshape(sums, (-1, length, num_heads, head_dim)), axis=-1)
    sums = swap_last_axes(sums)[..., None] * scale  # float32[B,heads,T,1]
    upstream = _split_heads(upstream, num_heads)
    # The delay keeps graph optimizers from merging these slices with those of the forward pass,
    # which would stay in memory until here.
    key, value = (x * delay(1.0, until=upstream) for x in (key, value))
    mask = _causal_mask(blocks[0].size, until=upstream) if causal else None
    columns = [_split_at_blocks(x, blocks) for x in (query, upstream, sums)]
    previous, gradients = upstream, []
    for query, above, sums, block in zip(*columns, blocks, strict=True):
        block_key, block_value = _visible(key, block), _visible(value, block)
        delayed_scale = delay(scale, until=previous)  # one block's scores in memory at a time
        block_mask = _block_mask(mask, block)
        weights = _attention_weights(query * delayed_scale, block_key, block_mask)
        slopes = ops.matmul(above * delayed_scale, swap_last_axes(block_value))
        slopes = weights * (ops.cast(slopes, "float32") - sums)
        slopes, weights = ops.cast(slopes, query.dtype), ops.cast(weights, query.dtype)
        previous = ops.matmul(swap_last_axes(slopes), query)
        value_gradient = ops.matmul(swap_last_axes(weights), above)
        gradients.append((ops.matmul(slopes, block_key), previous, value_gradient))
    queries, keys, values = zip(*gradients, strict=True)
    return ops.concatenate(queries, axis=2), _add_up(keys, blocks), _add_up(values, blocks)


def _add_up(gradients, blocks):
    """Sums gradients of keys or values, of which block i contributes those that it attends to."""
    terms = [[] for _ in blocks]
    for gradient in gradients:
        for terms_of_block, term in zip(terms, _split_at_blocks(gradient, blocks), strict=False):
            terms_of_block.append(term)
    return ops.concatenate([sum(some[1:], some[0]) for some in terms], axis=2)
