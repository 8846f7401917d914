"""Tests of the learning rate and the optimizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import Classifier, ImageGPT
from igpt_tf.training.optimization import OnePassAdam, build_optimizer


def schedule(num_steps=1000, **arguments):
    optimizer = build_optimizer(
        num_steps=num_steps, steps_per_epoch=100, learning_rate=0.003, **arguments
    )
    return lambda step: float(optimizer._learning_rate(step))


def test_warm_up_is_linear_over_one_epoch_or_a_tenth_of_the_run():
    rate = schedule(num_steps=1000)  # an epoch and a tenth of the run are 100 steps
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], [0, 0.0015, 0.003], atol=1e-9)
    np.testing.assert_allclose(schedule(num_steps=5000)(50), 0.0015, rtol=1e-6)  # an epoch
    np.testing.assert_allclose(schedule(num_steps=200)(10), 0.0015, rtol=1e-6)  # a tenth
    np.testing.assert_allclose(schedule(num_steps=9)(0), 0.003, rtol=1e-6)
    np.testing.assert_allclose(schedule(warmup_steps=10)(5), 0.0015, rtol=1e-6)
    np.testing.assert_allclose(schedule(warmup_steps=0)(0), 0.003, rtol=1e-6)


def test_learning_rate_decays_as_a_cosine_to_zero():
    rate = schedule()
    np.testing.assert_allclose(rate(550), 0.0015, rtol=1e-5)
    np.testing.assert_allclose(rate(1000), 0, atol=1e-9)


def test_optimizer_is_adam_with_the_papers_betas_and_no_weight_decay():
    optimizer = build_optimizer(num_steps=10, steps_per_epoch=1, learning_rate=0.1)
    assert (optimizer.beta_1, optimizer.beta_2) == (0.9, 0.95)
    assert optimizer.weight_decay is None


@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_one_pass_adam_equals_keras_adam(weight_decay):
    rng = np.random.default_rng(0)
    first, gradients = rng.normal(size=(5, 3)), rng.normal(size=(20, 5, 3)).astype("float32")
    arguments = {"beta_2": 0.95, "epsilon": 1e-8, "weight_decay": weight_decay}

    def moved(adam):
        variable, optimizer = keras.Variable(first), adam(0.01, **arguments)
        optimizer.build([variable])

        @tf.function
        def step(gradient):
            optimizer.apply([gradient], [variable])

        for gradient in gradients:
            step(gradient)
        return [variable.numpy(), *(x.numpy() for x in optimizer.variables[2:])]

    for ours, keras_own in zip(moved(OnePassAdam), moved(keras.optimizers.Adam), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-5, atol=1e-7)


def test_weight_decay_applies_to_matrices_only():
    shape = {"image_size": (2, 2), "vocabulary_size": 3, "num_layers": 2, "hidden_dim": 4}
    model = Classifier(ImageGPT(**shape, num_heads=2), num_classes=2)
    optimizer = build_optimizer(
        num_steps=10, steps_per_epoch=1, learning_rate=0.1, warmup_steps=0, weight_decay=0.5
    )
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    optimizer.apply([np.zeros(v.shape, "float32") for v in variables], variables)
    for variable in variables:
        expected = 0.95 if len(variable.shape) == 2 else 1.0
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, err_msg=variable.path)
    assert {v.name for v in variables if len(v.shape) == 1} == {"scale", "sos"}


def test_warm_up_takes_at_most_half_of_the_run():
    rate = schedule(num_steps=60, warmup_steps=200)
    np.testing.assert_allclose([rate(0), rate(15), rate(30)], [0, 0.0015, 0.003], atol=1e-9)
    np.testing.assert_allclose(schedule(num_steps=1, warmup_steps=200)(0), 0.003, rtol=1e-6)
    with pytest.raises(InputError, match="warmup_steps=-1"):
        schedule(warmup_steps=-1)
