"""Multi-head self-attention without biases, block by block."""

from typing import NamedTuple

import keras
from keras import ops

from igpt_tf.model.gradients import after, transposed, with_gradient

# Queries go in this many blocks, each against its own prefix of keys only: with n blocks the
# causal square costs (n + 1) / 2n of the whole, and no [T,T] tensor outlives its block.
_NUM_BLOCKS = 4
_MIN_BLOCK = 64
_HIDDEN = -1e9  # finite in every dtype: the reference's 1e10 is infinite in float16


class SelfAttention(keras.layers.Layer):
    """Dense multi-head self-attention, causal or bidirectional.

    Queries, keys and values come from one fused matrix. No bias, no dropout.

    Args:
        num_heads: Number of heads; divides D.
        num_layers: Depth L of the network, for the output matrix's initial scale.
        causal: Whether position i attends to positions <= i only.

    Source: openai/image-gpt `src/model.py`, `attn`. Initial standard deviations: 1/sqrt(D) for
    queries, keys and values, 1/sqrt(D L) for the output matrix.
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

    def call(self, x, norm=None):
        """Attends. `x` float[B,T,D] -> float[B,T,D]; `norm` is applied to `x` first."""
        query, key, value = self.project(x, norm.matmul if norm else ops.matmul)
        merged = attend(query, key, value, causal=self.causal)
        return ops.matmul(merged, self.output_kernel)

    def project(self, x, matmul=ops.matmul):
        """float[B,T,D] -> query, key, value, each float[B,heads,T,head_dim]."""
        _, length, dim = x.shape
        qkv = matmul(x, self.qkv_kernel)
        if length == 1:  # positions and heads change places without moving a number
            qkv = ops.reshape(qkv, (-1, 3, self.num_heads, 1, dim // self.num_heads))
            return ops.unstack(qkv, axis=1)
        qkv = ops.reshape(qkv, (-1, length, 3, self.num_heads, dim // self.num_heads))
        return ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), axis=0)

    def merge(self, heads, matmul=ops.matmul):
        """float[B,heads,T,head_dim] -> float[B,T,D], through the output matrix."""
        return matmul(_merged(heads), self.output_kernel)


def attend(query, key, value, *, causal: bool):
    """Softmax attention; the softmax runs in float32 whatever the compute dtype.

    The gradient computes each block's weights again, so that memory grows with T, not with T^2.

    Args:
        query: float[B,heads,T,head_dim].
        key: float[B,heads,T,head_dim].
        value: float[B,heads,T,head_dim].
        causal: Whether position i sees positions <= i only.

    Returns:
        float[B,T,D], the heads side by side.
    """

    @with_gradient
    def blockwise(query, key, value):
        blocks = _blocks(query.shape[2], causal)
        merged = _merged(_forward(query, key, value, blocks))
        return merged, lambda upstream: _backward(query, key, value, merged, upstream, blocks)

    return blockwise(query, key, value)


def _merged(heads):
    """float[B,heads,T,head_dim] -> float[B,T,D]."""
    _, num_heads, length, head_dim = heads.shape
    if length > 1:  # a single position's heads are side by side already
        heads = ops.transpose(heads, (0, 2, 1, 3))
    return ops.reshape(heads, (-1, length, num_heads * head_dim))


def _split(merged, num_heads):
    """float[B,T,D] -> float[B,heads,T,head_dim]."""
    _, length, dim = merged.shape
    heads = ops.reshape(merged, (-1, length, num_heads, dim // num_heads))
    return ops.transpose(heads, (0, 2, 1, 3))


class _Block(NamedTuple):
    """Some queries and the keys they see.

    Attributes:
        start: The first query.
        seen: How many keys there are for them.
        mask: Added to their scores, float32[queries, seen] or None.
    """

    start: int
    seen: int
    mask: object


def _blocks(length: int, causal: bool) -> list[_Block]:
    size = max(_MIN_BLOCK, -(-length // _NUM_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        seen = min(start + size, length) if causal else length
        blocks.append(_Block(start, seen, _mask(start, seen) if causal else None))
    return blocks


def _mask(start: int, stop: int):
    """float32[stop - start, stop]: queries `start` on see the keys up to their own."""
    visible = ops.arange(stop) <= ops.arange(start, stop)[:, None]
    return ops.where(visible, 0.0, _HIDDEN)


def _cut(x, blocks) -> list:
    """Parts of float[B,heads,n,head_dim] between the blocks' starts."""
    starts = [block.start for block in blocks[1:] if block.start < x.shape[2]]
    return ops.split(x, starts, axis=2) if starts else [x]


def _seen(x, block):
    """What the block sees of float[B,heads,T,head_dim]."""
    return x if block.seen == x.shape[2] else x[:, :, : block.seen]


def _forward(query, key, value, blocks):
    """float[B,heads,T,head_dim], one block of queries after the other."""
    scale = query.shape[-1] ** -0.5
    heads = []
    for rows, block in zip(_cut(query, blocks), blocks, strict=True):
        rows = rows * (after(heads[-1], scale) if heads else scale)
        weights = _weights(rows, _seen(key, block), block.mask)
        heads.append(ops.matmul(ops.cast(weights, value.dtype), _seen(value, block)))
    return ops.concatenate(heads, axis=2)


def _backward(query, key, value, merged, upstream, blocks):
    """Gradients of query, key and value, one block of queries after the other.

    The softmax's gradient is weights * (slopes - sum(weights * slopes)), and that sum over the
    keys equals the one of output * upstream over the head's width.
    """
    _, num_heads, length, head_dim = query.shape
    scale = head_dim**-0.5
    sums = ops.cast(merged, "float32") * ops.cast(upstream, "float32")
    sums = ops.sum(ops.reshape(sums, (-1, length, num_heads, head_dim)), axis=-1)
    sums = transposed(sums)[..., None] * scale  # float32[B,heads,T,1]
    upstream = _split(upstream, num_heads)
    # Sliced anew, so that the forward pass need not keep its slices.
    key, value = (x * after(upstream, 1.0) for x in (key, value))
    columns = [_cut(x, blocks) for x in (query, upstream, sums)]
    previous, gradients = upstream, []
    for query, above, sums, block in zip(*columns, blocks, strict=True):
        seen_key, seen_value = _seen(key, block), _seen(value, block)
        turn = after(previous, scale)
        weights = _weights(query * turn, seen_key, block.mask)
        slopes = ops.matmul(above * turn, transposed(seen_value))
        slopes = weights * (ops.cast(slopes, "float32") - sums)
        slopes, weights = ops.cast(slopes, query.dtype), ops.cast(weights, query.dtype)
        previous = ops.matmul(transposed(slopes), query)
        gradients.append(
            (ops.matmul(slopes, seen_key), previous, ops.matmul(transposed(weights), above))
        )
    queries, keys, values = zip(*gradients, strict=True)
    return ops.concatenate(queries, axis=2), _summed(keys, blocks), _summed(values, blocks)


def _weights(query, key, mask):
    scores = ops.cast(ops.matmul(query, transposed(key)), "float32")
    return ops.softmax(scores if mask is None else scores + mask)


def _summed(parts, blocks):
    """Adds gradients of the keys each block sees, part i of block i, strip by strip."""
    strips = [[] for _ in blocks]
    for part in parts:
        for strip, piece in zip(strips, _cut(part, blocks), strict=False):
            strip.append(piece)
    return ops.concatenate([sum(strip[1:], strip[0]) for strip in strips], axis=2)
