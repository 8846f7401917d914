"""Tests of the pretraining objectives, with values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf import objectives
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive, Masked, objective_from_config, register_objective


def small_model(causal):
    keras.utils.set_random_seed(0)
    return ImageGPT(
        image_size=(4, 4), vocabulary_size=7, num_layers=2, hidden_dim=8, num_heads=2, causal=causal
    )


def random_tokens(number, seed=0):
    return np.random.default_rng(seed).integers(0, 7, (number, 16)).astype("int32")


def randomize_output_embedding(model):
    values = np.random.default_rng(1).normal(size=model.output_embedding.shape)
    model.output_embedding.assign(values)


def reference_nats(logits, tokens):
    log_probabilities = tf.nn.log_softmax(logits).numpy()
    return -np.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("objective", [Autoregressive(), Masked()])
def test_initial_loss_is_log_vocabulary_size(objective):
    random_inputs = objective.random_inputs(seed=0, step=0, batch_size=3, sequence_length=16)
    losses = objective(small_model(objective.causal), random_tokens(3), **random_inputs)
    np.testing.assert_allclose(losses, np.log(7), rtol=1e-6)


def test_autoregressive_loss_is_mean_over_all_positions_including_the_first():
    model = small_model(causal=True)
    randomize_output_embedding(model)
    tokens = random_tokens(3)
    expected = reference_nats(model(tokens), tokens)
    np.testing.assert_allclose(Autoregressive()(model, tokens), expected.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(Autoregressive().token_scores(model, tokens), expected, rtol=1e-5)


def test_masked_loss_is_mean_over_hidden_positions_of_each_image():
    model = small_model(causal=False)
    randomize_output_embedding(model)
    tokens = random_tokens(2)
    masked = np.zeros((2, 16), "bool")
    masked[0, [3, 5]] = True
    masked[1, 7] = True
    nats = reference_nats(model(tokens, masked), tokens)
    expected = [nats[0, [3, 5]].mean(), nats[1, 7]]
    np.testing.assert_allclose(Masked()(model, tokens, masked=masked), expected, rtol=1e-5)


def test_masked_token_scores_predict_each_fold_from_the_others():
    model = small_model(causal=False)
    randomize_output_embedding(model)
    tokens = random_tokens(2)
    folds = np.random.default_rng(0).permutation(16) % 8
    expected = np.zeros((2, 16), "float32")
    for fold in range(8):
        masked = np.broadcast_to(folds == fold, (2, 16))
        expected[masked] = reference_nats(model(tokens, masked), tokens)[masked]
    scores = tf.function(lambda tokens: Masked().token_scores(model, tokens), autograph=False)
    np.testing.assert_allclose(scores(tf.constant(tokens)), expected, rtol=1e-5)


def test_masked_model_does_not_see_hidden_tokens():
    model = small_model(causal=False)
    randomize_output_embedding(model)
    tokens, changed = random_tokens(1), random_tokens(1)
    masked = np.zeros((1, 16), "bool")
    masked[0, 4:8] = True
    changed[0, 4:8] = (changed[0, 4:8] + 3) % 7
    np.testing.assert_allclose(model(tokens, masked), model(changed, masked), atol=1e-6)
    assert np.abs(model(tokens) - model(changed)).max() > 1e-3


def test_masks_depend_on_seed_and_step_and_have_the_requested_share():
    def masks(seed, step):
        arguments = {"seed": seed, "step": step, "batch_size": 64, "sequence_length": 1024}
        return Masked(0.15).random_inputs(**arguments)["masked"].numpy()

    np.testing.assert_array_equal(masks(0, 3), masks(0, 3))
    assert (masks(0, 3) != masks(0, 4)).any() and (masks(0, 3) != masks(1, 3)).any()
    assert abs(masks(0, 3).mean() - 0.15) < 0.005


def test_every_image_has_a_hidden_position():
    masked = Masked(0.01).random_inputs(seed=0, step=0, batch_size=256, sequence_length=4)["masked"]
    assert masked.numpy().any(axis=1).all()


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, float("nan")])
def test_probability_outside_zero_and_one_is_refused(probability):
    with pytest.raises(InputError, match="probability"):
        Masked(probability)


def test_objective_is_rebuilt_from_its_config():
    assert objective_from_config(Masked(0.2).get_config()).probability == 0.2
    assert isinstance(objective_from_config({"name": "autoregressive"}), Autoregressive)
    with pytest.raises(InputError, match="unknown objective.*autoregressive.*masked"):
        objective_from_config({"name": "diffusion"})
    with pytest.raises(InputError, match="get_config.*'masked'"):
        objective_from_config("masked")
    for wrong in ({"name": "autoregressive", "p": 1}, {"name": "masked", "probability": "half"}):
        with pytest.raises(InputError, match="arguments are wrong"):
            objective_from_config(wrong)


def test_registered_objective_is_found_by_name(monkeypatch):
    monkeypatch.setattr(objectives, "_OBJECTIVES", dict(objectives._OBJECTIVES))

    @register_objective
    class Toy(Autoregressive):
        name = "toy"

    assert isinstance(objective_from_config({"name": "toy"}), Toy)
