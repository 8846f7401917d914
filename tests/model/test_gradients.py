"""Hand-written gradients equal those of the published formulas."""

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.model import gradients


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def norm(x, gain):
    return x * tf.math.rsqrt(tf.reduce_mean(x**2, axis=-1, keepdims=True) + 1e-5) * gain


def gelu(x):
    return x * tf.sigmoid(1.702 * x)


FORMULAS = {
    "rms_norm": norm,
    "rms_norm_matmul": lambda x, gain, kernel: norm(x, gain) @ kernel,
    "rms_norm_mlp": lambda x, gain, into, out: gelu(norm(x, gain) @ into) @ out,
}
SHAPES = [(2, 5, 16), (16,), (16, 24), (24, 16)]


def random_inputs(rng, name, dtype="float32"):
    """The arguments of the function `name`."""
    number = {"rms_norm": 2, "rms_norm_matmul": 3, "rms_norm_mlp": 4}[name]
    return [tf.constant(rng.normal(size=shape), dtype) for shape in SHAPES[:number]]


def with_gradients(function, inputs, upstream):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        result = function(*inputs)
        total = tf.reduce_sum(result * upstream)
    return [result, *tape.gradient(total, inputs)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_result_and_gradients_are_those_of_the_formula(rng, name, compiled):
    inputs = random_inputs(rng, name)
    upstream = rng.normal(size=FORMULAS[name](*inputs).shape).astype("float32")
    written = getattr(gradients, name)

    @tf.function(autograph=False, jit_compile=compiled)
    def ours():
        return with_gradients(written, inputs, upstream)

    for one, other in zip(ours(), with_gradients(FORMULAS[name], inputs, upstream), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_gradient_has_the_dtype_of_what_it_is_the_gradient_of(rng, name):
    inputs = random_inputs(rng, name, "bfloat16")
    exact = [tf.cast(x, "float32") for x in inputs]
    ours = with_gradients(getattr(gradients, name), inputs, tf.ones((), "bfloat16"))
    assert {one.dtype for one in ours} == {tf.bfloat16}
    for one, other in zip(ours, with_gradients(FORMULAS[name], exact, 1.0), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(tf.cast(one, "float32") / scale, other / scale, atol=0.05)


def test_quick_gelu_is_the_papers_formula(rng):
    x = tf.constant(rng.normal(scale=4, size=1000), "float32")
    np.testing.assert_allclose(gradients.quick_gelu(x), gelu(x), rtol=1e-5, atol=1e-6)
