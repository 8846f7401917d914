"""Claims about the two objectives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive, Masked, objective_from_description


def small_model(causal):
    keras.utils.set_random_seed(0)
    return ImageGPT(
        image_size=(4, 4), vocabulary_size=7, num_layers=2, hidden_dim=8, num_heads=2, causal=causal
    )


def tokens_of(number, seed=0):
    return np.random.default_rng(seed).integers(0, 7, (number, 16)).astype("int32")


def give_the_output_embedding_values(model):
    values = np.random.default_rng(1).normal(size=model.output_embedding.shape)
    model.output_embedding.assign(values)


@pytest.mark.parametrize("objective", [Autoregressive(), Masked()])
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(objective):
    draws = objective.draws(seed=0, step=0, batch_size=3, sequence_length=16)
    losses = objective(small_model(objective.causal), tokens_of(3), **draws)
    np.testing.assert_allclose(losses, np.log(7), rtol=1e-6)


def test_the_autoregressive_loss_is_the_mean_over_all_pixels_the_first_included():
    model = small_model(causal=True)
    give_the_output_embedding_values(model)
    tokens = tokens_of(3)
    chances = tf.nn.log_softmax(model(tokens)).numpy()
    expected = -np.take_along_axis(chances, tokens[..., None], axis=-1)[..., 0].mean(axis=1)
    np.testing.assert_allclose(Autoregressive()(model, tokens), expected, rtol=1e-5)


def test_the_masked_loss_is_each_images_mean_over_its_hidden_pixels():
    model = small_model(causal=False)
    give_the_output_embedding_values(model)
    tokens = tokens_of(2)
    masked = np.zeros((2, 16), "bool")
    masked[0, [3, 5]] = True
    masked[1, 7] = True
    chances = tf.nn.log_softmax(model(tokens, masked)).numpy()
    nats = -np.take_along_axis(chances, tokens[..., None], axis=-1)[..., 0]
    expected = [nats[0, [3, 5]].mean(), nats[1, 7]]
    np.testing.assert_allclose(Masked()(model, tokens, masked=masked), expected, rtol=1e-5)


def test_a_masked_model_never_sees_the_hidden_colours():
    model = small_model(causal=False)
    give_the_output_embedding_values(model)
    tokens, others = tokens_of(1), tokens_of(1)
    masked = np.zeros((1, 16), "bool")
    masked[0, 4:8] = True
    others[0, 4:8] = (others[0, 4:8] + 3) % 7
    np.testing.assert_allclose(model(tokens, masked), model(others, masked), atol=1e-6)
    assert np.abs(model(tokens) - model(others)).max() > 1e-3


def test_masks_depend_on_seed_and_step_alone_and_hide_the_share_asked_for():
    def masks(seed, step):
        draws = Masked(0.15).draws(seed=seed, step=step, batch_size=64, sequence_length=1024)
        return draws["masked"].numpy()

    np.testing.assert_array_equal(masks(0, 3), masks(0, 3))
    assert (masks(0, 3) != masks(0, 4)).any() and (masks(0, 3) != masks(1, 3)).any()
    assert abs(masks(0, 3).mean() - 0.15) < 0.005


def test_no_image_is_left_without_a_hidden_pixel():
    draws = Masked(0.01).draws(seed=0, step=0, batch_size=256, sequence_length=4)
    assert draws["masked"].numpy().any(axis=1).all()


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_zero_and_one_is_refused(probability):
    with pytest.raises(InputError, match="probability"):
        Masked(probability)


def test_an_objective_is_rebuilt_from_its_description():
    assert objective_from_description(Masked(0.2).description()).probability == 0.2
    assert objective_from_description({"name": "autoregressive"}).causal
    with pytest.raises(InputError, match="unknown objective"):
        objective_from_description({"name": "diffusion"})
    for wrong in ({"name": "autoregressive", "p": 1}, {"name": "masked", "probability": "half"}):
        with pytest.raises(InputError, match="not an objective's arguments"):
            objective_from_description(wrong)
