"""Attention: blocks of queries change neither results nor gradients, and save memory."""

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.model.attention import attend, query_blocks


def plain(query, key, value, causal):
    """Softmax attention over the whole square, as in the published code; float[B,T,D]."""
    scores = tf.matmul(query, key, transpose_b=True) * query.shape[-1] ** -0.5
    if causal:
        square = tf.ones((query.shape[2], key.shape[2]), tf.bool)
        scores = tf.where(tf.linalg.band_part(square, -1, 0), scores, -1e9)
    heads = tf.matmul(tf.nn.softmax(scores), value)
    batch_size, num_heads, length, head_dim = heads.shape
    return tf.reshape(tf.transpose(heads, (0, 2, 1, 3)), (batch_size, length, num_heads * head_dim))


def random_inputs(length, scale=1.0):
    rng = np.random.default_rng(length)
    shapes = [(2, 3, length, 8)] * 3 + [(2, length, 24)]
    return [tf.constant(scale * rng.normal(size=shape), "float32") for shape in shapes]


def with_gradients(function, query, key, value, upstream):
    with tf.GradientTape() as tape:
        tape.watch([query, key, value])
        merged = function(query, key, value)
        total = tf.reduce_sum(merged * upstream)
    return [merged, *tape.gradient(total, [query, key, value])]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 16, 100, 196, 256, 1100])
def test_blockwise_attention_and_its_gradients_equal_the_plain_form(length, causal):
    inputs = random_inputs(length)
    ours = with_gradients(lambda q, k, v: attend(q, k, v, causal=causal), *inputs)
    reference = with_gradients(lambda q, k, v: plain(q, k, v, causal), *inputs)
    for one, other in zip(ours, reference, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("length", [16, 64, 100, 256, 400, 784, 1024, 2304, 4096])
def test_blocks_of_queries_have_sizes_that_matrix_units_like(length):
    blocks = query_blocks(length, causal=True)
    assert blocks[-1].num_keys == sum(block.size for block in blocks) == length
    assert all(block.size % 32 == 0 for block in blocks[:-1])
    assert max(block.size for block in blocks) <= 256


def test_compiled_attention_equals_the_plain_form():
    inputs = random_inputs(100)

    @tf.function(jit_compile=True)
    def compiled(*inputs):
        return with_gradients(lambda q, k, v: attend(q, k, v, causal=True), *inputs)

    reference = with_gradients(lambda q, k, v: plain(q, k, v, True), *inputs)
    for one, other in zip(compiled(*inputs), reference, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_large_scores_do_not_overflow():
    inputs = random_inputs(100, scale=100.0)
    results = with_gradients(lambda q, k, v: attend(q, k, v, causal=True), *inputs)
    assert all(np.isfinite(result).all() for result in results)


def test_in_bfloat16_the_softmax_keeps_float32_accuracy():
    query, key, value, _ = random_inputs(256)
    half = [tf.cast(x, "bfloat16") for x in (query, key, value)]
    exact = plain(*(tf.cast(x, "float32") for x in half), causal=True)
    assert attend(*half, causal=True).dtype == "bfloat16"
    np.testing.assert_allclose(tf.cast(attend(*half, causal=True), "float32"), exact, atol=0.02)


def largest_kept(length):
    """Elements of the largest tensor that the forward pass hands to the backward pass."""
    with tf.Graph().as_default() as graph:
        inputs = random_inputs(length)[:3]
        merged = attend(*inputs, causal=True)
        forward = {op.name for op in graph.get_operations()}
        tf.gradients(merged, inputs)
        kept = [
            tensor
            for op in graph.get_operations()
            if op.name not in forward
            for tensor in op.inputs
            if tensor.op.name in forward
        ]
    return max(int(np.prod(tensor.shape)) for tensor in kept)


def test_no_square_of_the_length_is_kept_for_the_backward_pass():
    assert largest_kept(512) == 2 * largest_kept(256)


def test_memory_and_program_stay_small_at_long_sequences():
    @tf.function(jit_compile=True, autograph=False)
    def gradients(*inputs):
        return with_gradients(lambda q, k, v: attend(q, k, v, causal=True), *inputs)

    specs = [tf.TensorSpec((1, 1, 4096, 8))] * 3 + [tf.TensorSpec((1, 4096, 8))]
    graph = gradients.get_concrete_function(*specs).graph
    outputs = [tensor for op in graph.get_operations() for tensor in op.outputs]
    sizes = [np.prod(tensor.shape) for tensor in outputs if tensor.shape.is_fully_defined()]
    assert max(sizes) == 256 * 4096  # the scores of one block of queries
    program = gradients.experimental_get_compiler_ir(*random_inputs(1024))(stage="hlo_serialized")
    assert len(program) < 500_000  # 5 MB if masks were constants
