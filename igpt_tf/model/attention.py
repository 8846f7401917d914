"""Multi-head self-attention without biases, block by block."""

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
        query, key, value = self.project(x, norm)
        return self.merge(attend(query, key, value, causal=self.causal))

    def project(self, x, norm=None):
        """float[B,T,D] -> query, key, value, each float[B,heads,T,head_dim]."""
        _, length, dim = x.shape
        qkv = norm.matmul(x, self.qkv_kernel) if norm else ops.matmul(x, self.qkv_kernel)
        if length == 1:  # positions and heads change places without moving a number
            qkv = ops.reshape(qkv, (-1, 3, self.num_heads, 1, dim // self.num_heads))
            return ops.unstack(qkv, axis=1)
        qkv = ops.reshape(qkv, (-1, length, 3, self.num_heads, dim // self.num_heads))
        return ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), axis=0)

    def merge(self, heads):
        """float[B,heads,T,head_dim] -> float[B,T,D], through the output matrix."""
        _, num_heads, length, head_dim = heads.shape
        if length > 1:
            heads = ops.transpose(heads, (0, 2, 1, 3))
        merged = ops.reshape(heads, (-1, length, num_heads * head_dim))
        return ops.matmul(merged, self.output_kernel)


def attend(query, key, value, *, causal: bool):
    """Softmax attention; the softmax runs in float32 whatever the compute dtype.

    The gradient computes each block's weights again, so that memory grows with T, not with T^2.

    Args:
        query: float[B,heads,T,head_dim].
        key: float[B,heads,T,head_dim].
        value: float[B,heads,T,head_dim].
        causal: Whether position i sees positions <= i only.

    Returns:
        float[B,heads,T,head_dim].
    """

    @with_gradient
    def blockwise(query, key, value):
        blocks = _blocks(query.shape[2], causal)
        return _forward(query, key, value, blocks), lambda upstream: _backward(
            query, key, value, upstream, blocks
        )

    return blockwise(query, key, value)


def _blocks(length: int, causal: bool) -> list[tuple]:
    """(rows of queries, rows of keys they see, additive mask float32[rows, keys] or None)."""
    size = max(_MIN_BLOCK, -(-length // _NUM_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        rows = slice(start, stop)
        if causal:
            visible = ops.arange(stop) <= ops.arange(start, stop)[:, None]
            blocks.append((rows, slice(0, stop), ops.where(visible, 0.0, _HIDDEN)))
        else:
            blocks.append((rows, slice(0, length), None))
    return blocks


def _forward(query, key, value, blocks):
    """float[B,heads,T,head_dim]."""
    query = query * query.shape[-1] ** -0.5
    heads = []
    for rows, keys, mask in blocks:
        weights = _weights(query[:, :, rows], key[:, :, keys], mask)
        heads.append(ops.matmul(ops.cast(weights, value.dtype), value[:, :, keys]))
    return ops.concatenate(heads, axis=2)


def _backward(query, key, value, upstream, blocks):
    """Gradients of query, key and value."""
    query = query * after(upstream, query.shape[-1] ** -0.5)
    query_parts, key_parts, value_parts = [], [], []
    for rows, keys, mask in blocks:
        weights = _weights(query[:, :, rows], key[:, :, keys], mask)
        above = upstream[:, :, rows]
        slopes = ops.cast(ops.matmul(above, transposed(value[:, :, keys])), "float32")
        # The softmax's gradient.
        slopes = weights * (slopes - ops.sum(weights * slopes, axis=-1, keepdims=True))
        slopes, weights = ops.cast(slopes, query.dtype), ops.cast(weights, query.dtype)
        query_parts.append(ops.matmul(slopes, key[:, :, keys]))
        key_parts.append(ops.matmul(transposed(slopes), query[:, :, rows]))
        value_parts.append(ops.matmul(transposed(weights), above))
    query_gradient = ops.concatenate(query_parts, axis=2) * query.shape[-1] ** -0.5
    return query_gradient, _summed(key_parts, blocks), _summed(value_parts, blocks)


def _weights(query, key, mask):
    scores = ops.cast(ops.matmul(query, transposed(key)), "float32")
    return ops.softmax(scores if mask is None else scores + mask)


def _summed(parts, blocks):
    """Adds gradients of the keys each block sees, part i of block i, strip by strip."""
    strips = []
    for rows, _, _ in blocks:
        seen = [part[:, :, rows] for part in parts if part.shape[2] >= rows.stop]
        strips.append(sum(seen[1:], seen[0]))
    return ops.concatenate(strips, axis=2)
