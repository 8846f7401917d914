"""Painting pixel after pixel with cached keys and values.

The image is painted in segments of whole rows. A segment's cache has static room for its own
pixels and all before it. What is given of a segment is filled in one parallel pass, the rest in a
loop over pixels. Nothing beyond the segment is stored or read.
"""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf
from keras import ops

from igpt_tf.model import ImageGPT
from igpt_tf.sampling.cache import CoreCache, XlaCache, segment_length
from igpt_tf.sampling.choosing import Brush


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Paints with a causal model.

    Attributes:
        model: A causal `ImageGPT`.
        brush: How a colour is chosen.
        uniforms: float32[B,T] in [0, 1), one for every pixel.
        xla: Whether this is traced inside a jit-compiled function. Segments are then unrolled,
            for static shapes; elsewhere they are a loop.
        cache_dtype: Of keys and values; "bfloat16" halves their memory.
        matmul: Multiplies one pixel of each image with a kernel of the blocks.
    """

    model: ImageGPT
    brush: Brush
    uniforms: tf.Tensor
    xla: bool
    cache_dtype: str
    matmul: Callable = ops.matmul

    @property
    def cache(self):
        """The cache's operations."""
        return XlaCache if self.xla else CoreCache

    @property
    def length(self) -> int:
        """Pixels in a segment."""
        return segment_length(self.model.image_size, self.cache.most_segments)

    def paint(self, tokens, num_given):
        """Replaces every token from raster pixel `num_given` (int or int32[]) on. int32[B,T]."""
        caches = self._room(tf.shape(tokens)[0], 0)
        if not self.xla:
            caches = self._begin(tokens, num_given, caches)
            return self._loop(tokens, num_given, caches)
        for start in range(0, self.model.sequence_length, self.length):
            caches = self._fill(start, num_given, tokens, caches)
            tokens, caches = self._segment(start, num_given, tokens, caches)
        return tokens

    def _begin(self, tokens, num_given, caches):
        """Caches of all segments in which something is given, in passes over whole segments.

        Images that begin like their neighbour share its pass: many completions of one image cost
        one beginning.
        """
        if tf.get_static_value(num_given) == 0:
            return caches
        leaders, followed = beginnings(tokens, num_given)
        alone = tf.gather(tokens, leaders)
        room = self._room(tf.size(leaders), 0)
        _, begun = tf.while_loop(
            lambda start, _: start < num_given,
            lambda start, caches: (start + self.length, self._given(start, alone, caches)),
            (0, room),
            shape_invariants=(tf.TensorShape([]), tf.nest.map_structure(_any_length, room)),
        )
        # Copied only where it is needed: the caches are most of the memory.
        begun = tf.cond(
            tf.size(leaders) < tf.size(followed),
            lambda: tf.nest.map_structure(lambda cache: tf.gather(cache, followed), begun),
            lambda: begun,
        )
        return tf.nest.map_structure(
            lambda cache, whole: tf.ensure_shape(cache, _any_length(whole)), begun, caches
        )

    def _loop(self, tokens, num_given, caches):
        """Tokens int32[B,T] with all segments painted that are not wholly given."""
        total, length = self.model.sequence_length, self.length

        def body(start, tokens, caches):
            filled = tf.shape(caches[0][0])[2] > start
            caches = tf.cond(filled, lambda: caches, lambda: self._with_room(tokens, caches))
            return start + length, *self._segment(start, num_given, tokens, caches)

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

    def _room(self, batch_size, length):
        """Unused keys and values, (float[B,heads,length,head_dim],) * 2 for every layer."""
        heads = self.model.num_heads
        shape = (batch_size, heads, length, self.model.hidden_dim // heads)
        static = tf.TensorShape([tf.get_static_value(n) for n in shape])
        return [
            tuple(tf.ensure_shape(self.cache.room(shape, self.cache_dtype), static) for _ in "kv")
            for _ in self.model.blocks
        ]

    def _with_room(self, tokens, caches):
        """Caches with unused room for one more segment."""
        room = self._room(tf.shape(tokens)[0], self.length)
        return tf.nest.map_structure(_join, caches, room)

    def _segment(self, start, num_given, tokens, caches):
        """Tokens int32[B,T] with one more segment painted, in caches that have room for it."""
        end = start + self.length
        first = tf.maximum(start, num_given)
        previous = tf.gather(tokens, tf.maximum(first - 1, 0), axis=1)
        places = start + tf.range(self.length)

        def body(position, previous, row, caches):
            logits, caches = self._step(position, previous, caches)
            token = self.brush.choose(logits, tf.gather(self.uniforms, position, axis=1))
            return position + 1, token, tf.where(places == position, token[:, None], row), caches

        row = tf.slice(tokens, [0, start], [-1, self.length])
        _, _, row, caches = tf.while_loop(
            lambda position, *_: position < end, body, (first, previous, row, caches)
        )
        painted = tf.concat([tokens[:, :start], row, tokens[:, end:]], axis=1)
        return tf.ensure_shape(painted, tokens.shape), caches

    def _fill(self, start, num_given, tokens, caches):
        """Caches with room for the segment, and in it what is given of it."""
        if tf.get_static_value(num_given) == 0:
            return self._with_room(tokens, caches)
        return tf.cond(
            num_given > start,
            lambda: self._given(start, tokens, caches),
            lambda: self._with_room(tokens, caches),
        )

    def _given(self, start, tokens, caches):
        """Caches with the segment's keys and values, as if all of it were given."""
        h = tf.slice(self.model.embed(tokens), [0, start, 0], [-1, self.length, -1])
        places = start + tf.range(self.length)
        visible = tf.range(start + self.length) <= places[:, None]
        return self._advance(h, caches, _join, visible)[1]

    def _step(self, position, previous, caches):
        """Logits float32[B,V] of the pixel at `position`, whose predecessor is `previous`."""
        model = self.model
        h = tf.gather(model.token_embedding, previous)
        h = tf.where(position == 0, model.sos, h) + model.position_embedding[position]
        visible = tf.range(tf.shape(caches[0][0])[2]) <= position
        h = tf.cast(h[:, None], model.compute_dtype)
        update = functools.partial(self.cache.update, position=position)
        h, caches = self._advance(h, caches, update, visible, self.matmul)
        return model.logits(h)[:, 0], caches

    def _advance(self, h, caches, write, visible, matmul=ops.matmul):
        """h float[B,n,D] through all blocks, its keys and values being written to the caches."""
        written = []
        for block, cache in zip(self.model.blocks, caches, strict=True):
            query, *new = block.attention.project(block.attention_norm(h), matmul)
            cache = [write(c, tf.cast(n, c.dtype)) for c, n in zip(cache, new, strict=True)]
            heads = attend(query, *cache, visible)
            h = h + tf.cast(block.attention.merge(heads, matmul), h.dtype)
            h = h + tf.cast(block.mlp(block.mlp_norm(h), matmul=matmul), h.dtype)
            written.append(tuple(cache))
        return h, written


def beginnings(tokens, num_given):
    """Which images begin unlike the one before.

    Args:
        tokens: int32[B,T].
        num_given: int or int32[], how long a beginning is.

    Returns:
        (int64[N], the first image of every run of like beginnings; int32[B], each image's run).
    """
    given = tf.range(tf.shape(tokens)[1]) < num_given
    unlike = tf.reduce_any((tokens[1:] != tokens[:-1]) & given, axis=1)
    unlike = tf.concat([tf.ones_like(tokens[:1, 0], tf.bool), unlike], axis=0)
    return tf.where(unlike)[:, 0], tf.cumsum(tf.cast(unlike, tf.int32)) - 1


def _join(cache, new):
    return tf.concat([cache, new], axis=2)


def _any_length(cache):
    return tf.TensorShape([*cache.shape[:2], None, cache.shape[3]])


def attend(query, keys, values, visible):
    """Attention to a cache.

    Args:
        query: float[B,heads,n,head_dim].
        keys: float[B,heads,S,head_dim].
        values: float[B,heads,S,head_dim].
        visible: bool[n,S] or bool[S].

    Returns:
        float[B,heads,n,head_dim]. The softmax runs in float32.
    """
    keys, values = (tf.cast(x, query.dtype) for x in (keys, values))
    scores = tf.matmul(query * query.shape[-1] ** -0.5, keys, transpose_b=True)
    # Adding costs a fifth of selecting with broadcast; -1e9 is finite in every dtype.
    scores = tf.cast(scores, tf.float32) + tf.where(visible, 0.0, -1e9)
    weights = tf.cast(tf.nn.softmax(scores), query.dtype)
    return tf.matmul(weights, values)
