"""Claims about the learning rate and the optimizer."""

import keras
import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.training.optimization import build_optimizer


def schedule(num_steps=1000, **arguments):
    optimizer = build_optimizer(
        num_steps=num_steps, steps_per_epoch=100, learning_rate=0.003, **arguments
    )
    return lambda step: float(optimizer._learning_rate(step))


def test_warm_up_is_linear_over_one_epoch_unless_told():
    rate = schedule()
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], [0, 0.0015, 0.003], atol=1e-9)
    np.testing.assert_allclose(schedule(warmup_steps=10)(5), 0.0015, rtol=1e-6)
    np.testing.assert_allclose(schedule(warmup_steps=0)(0), 0.003, rtol=1e-6)


def test_the_learning_rate_falls_as_a_cosine_to_zero():
    rate = schedule()
    np.testing.assert_allclose(rate(550), 0.0015, rtol=1e-5)
    np.testing.assert_allclose(rate(1000), 0, atol=1e-9)


def test_the_optimizer_is_adam_with_the_papers_betas_and_no_weight_decay():
    optimizer = build_optimizer(num_steps=10, steps_per_epoch=1, learning_rate=0.1)
    assert (optimizer.beta_1, optimizer.beta_2) == (0.9, 0.95)
    assert optimizer.weight_decay is None


def test_weight_decay_spares_the_gains_of_the_norms():
    optimizer = build_optimizer(
        num_steps=10, steps_per_epoch=1, learning_rate=0.1, warmup_steps=0, weight_decay=0.5
    )
    gain = keras.Variable(np.ones(2), name="scale")
    matrix = keras.Variable(np.ones((2, 2)), name="kernel")
    optimizer.apply([np.zeros(2), np.zeros((2, 2))], [gain, matrix])
    np.testing.assert_allclose(gain.numpy(), 1.0)
    np.testing.assert_allclose(matrix.numpy(), 0.95, rtol=1e-5)


def test_a_warm_up_that_outlasts_the_run_is_refused():
    with pytest.raises(InputError, match="warmup_steps=100"):
        schedule(num_steps=100)
