"""What saves memory and time without changing the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive

TOKENS = np.random.default_rng(0).integers(0, 7, (3, 64)).astype("int32")


def gradients(remat, jit_compile=False):
    keras.utils.set_random_seed(0)
    model = ImageGPT(
        image_size=(8, 8),
        vocabulary_size=7,
        num_layers=3,
        hidden_dim=16,
        num_heads=2,
        remat=remat,
    )
    values = np.random.default_rng(1).normal(size=model.output_embedding.shape)
    model.output_embedding.assign(values)

    @tf.function(jit_compile=jit_compile)
    def loss_and_gradients():
        variables = [weight.value for weight in model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(Autoregressive()(model, TOKENS))
        return loss, tape.gradient(loss, variables)

    return tf.nest.map_structure(lambda x: tf.convert_to_tensor(x).numpy(), loss_and_gradients())


@pytest.mark.parametrize("jit_compile", [False, True])
def test_recomputing_activations_gives_the_same_gradients(jit_compile):
    for kept, again in zip(
        tf.nest.flatten(gradients(False, jit_compile)),
        tf.nest.flatten(gradients(True, jit_compile)),
        strict=True,
    ):
        assert np.abs(kept - again).max() <= 1e-6 * np.abs(kept).max()


@pytest.fixture
def bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def test_in_mixed_precision_weights_logits_and_norms_stay_in_float32(bfloat16):
    loss, _ = gradients(False)
    keras.utils.set_random_seed(0)
    model = ImageGPT(image_size=(8, 8), vocabulary_size=7, num_layers=3, hidden_dim=16, num_heads=2)
    assert model.compute_dtype == "bfloat16"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model(TOKENS).dtype == "float32"
    keras.config.set_dtype_policy("float32")
    exact, _ = gradients(False)
    np.testing.assert_allclose(loss, exact, rtol=0.01)
