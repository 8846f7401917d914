"""Multi-head self-attention without biases, block by block."""

import keras
from keras import ops

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

    def call(self, x):
        """Attends. `x` float[B,T,D] -> float[B,T,D]."""
        query, key, value = self.project(x)
        return self.merge(attend(query, key, value, causal=self.causal))

    def project(self, x):
        """float[B,T,D] -> query, key, value, each float[B,heads,T,head_dim]."""
        _, length, dim = x.shape
        qkv = ops.matmul(x, self.qkv_kernel)
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

    The gradient recomputes each block's weights from the kept normalisers, so that memory grows
    with T and not with T^2.

    Args:
        query: float[B,heads,T,head_dim].
        key: float[B,heads,T,head_dim].
        value: float[B,heads,T,head_dim].
        causal: Whether position i sees positions <= i only.

    Returns:
        float[B,heads,T,head_dim].
    """

    @ops.custom_gradient
    def blockwise(query, key, value):
        query = query * query.shape[-1] ** -0.5
        blocks = _blocks(query.shape[2], causal)
        heads, normalisers = _forward(query, key, value, blocks)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return _backward(query, key, value, heads, normalisers, upstream, blocks)

        return heads, gradient

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
    """heads float[B,heads,T,head_dim] and each block's log-normaliser float32[B,heads,rows,1]."""
    heads, normalisers = [], []
    for rows, keys, mask in blocks:
        scores = _scores(query[:, :, rows], key[:, :, keys], mask)
        highest = ops.max(scores, axis=-1, keepdims=True)
        weights = ops.exp(scores - highest)
        total = ops.sum(weights, axis=-1, keepdims=True)
        mixed = ops.matmul(ops.cast(weights, value.dtype), value[:, :, keys])
        heads.append(mixed / ops.cast(total, value.dtype))
        normalisers.append(highest + ops.log(total))
    return ops.concatenate(heads, axis=2), normalisers


def _backward(query, key, value, heads, normalisers, upstream, blocks):
    """Gradients of query, key and value; `query` comes scaled."""
    # The softmax's gradient is w * (d - sum(w * d)); the sum equals upstream . heads.
    shared = ops.sum(ops.cast(upstream * heads, "float32"), axis=-1, keepdims=True)
    query_parts, key_parts, value_parts = [], [], []
    for (rows, keys, mask), normaliser in zip(blocks, normalisers, strict=True):
        weights = ops.exp(_scores(query[:, :, rows], key[:, :, keys], mask) - normaliser)
        above = upstream[:, :, rows]
        slopes = ops.cast(ops.matmul(above, _transposed(value[:, :, keys])), "float32")
        slopes = ops.cast(weights * (slopes - shared[:, :, rows]), query.dtype)
        query_parts.append(ops.matmul(slopes, key[:, :, keys]))
        key_parts.append(ops.matmul(_transposed(slopes), query[:, :, rows]))
        weights = ops.cast(weights, value.dtype)
        value_parts.append(ops.matmul(_transposed(weights), above))
    query_gradient = ops.concatenate(query_parts, axis=2) * query.shape[-1] ** -0.5
    length = key.shape[2]
    return query_gradient, _summed(key_parts, length), _summed(value_parts, length)


def _scores(query, key, mask):
    scores = ops.cast(ops.matmul(query, _transposed(key)), "float32")
    return scores if mask is None else scores + mask


def _transposed(x):
    return ops.transpose(x, (0, 1, 3, 2))


def _summed(parts, length):
    """Adds gradients of prefixes, each float[B,heads,<=T,head_dim]."""
    return sum(
        ops.pad(part, ((0, 0), (0, 0), (0, length - part.shape[2]), (0, 0))) for part in parts
    )
