"""The network computes the published equations."""

import functools
import math

import keras
import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT, abstract_model
from tests import oracle

SIZES = {
    "image_size": (3, 5),
    "vocabulary_size": 13,
    "num_layers": 3,
    "hidden_dim": 24,
    "num_heads": 3,
}
PUBLISHED = {"S": (24, 512, 8), "M": (36, 1024, 8), "L": (48, 1536, 16), "XL": (60, 3072, 16)}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _random_model(rng, causal=True, **sizes):
    arrays = oracle.random_arrays(rng, **{**SIZES, **sizes}, causal=causal)
    model = ImageGPT(**{**SIZES, **sizes}, causal=causal)
    oracle.assign(model, arrays)
    return model, arrays


def _tokens(rng, batch_size=4):
    return rng.integers(0, SIZES["vocabulary_size"], (batch_size, 15)).astype("int32")


def _assert_close(ours, reference):
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("num_heads", [1, 3, 8])
def test_autoregressive_logits_equal_the_published_equations(rng, num_heads):
    model, arrays = _random_model(rng, num_heads=num_heads)
    tokens = _tokens(rng)
    _assert_close(model(tokens), oracle.logits(arrays, tokens))


def test_masked_logits_equal_the_published_equations(rng):
    model, arrays = _random_model(rng, causal=False)
    tokens, masked = _tokens(rng), rng.random((4, 15)) < 0.3
    _assert_close(model(tokens, masked), oracle.logits(arrays, tokens, masked))
    _assert_close(model(tokens), oracle.logits(arrays, tokens))


@pytest.mark.parametrize("causal", [True, False])
def test_features_are_the_means_of_the_normalised_layer_inputs(rng, causal):
    model, arrays = _random_model(rng, causal=causal)
    tokens = _tokens(rng)
    features = model.features(tokens)
    assert features.shape == (4, SIZES["num_layers"] + 1, SIZES["hidden_dim"])
    _assert_close(features, oracle.features(arrays, tokens))


def test_a_later_pixel_never_changes_an_earlier_prediction(rng):
    model, _ = _random_model(rng)
    tokens = _tokens(rng, 1)
    before = np.asarray(model(tokens))
    for place in range(15):
        changed = tokens.copy()
        changed[0, place] = (changed[0, place] + 1) % SIZES["vocabulary_size"]
        after = np.asarray(model(changed))
        np.testing.assert_array_equal(after[:, : place + 1], before[:, : place + 1])
        if place < 14:
            assert np.all(np.abs(after - before)[:, place + 1 :].max(axis=-1) > 0)


def test_a_masked_model_sees_every_pixel_but_not_the_colour_of_a_hidden_one(rng):
    model, _ = _random_model(rng, causal=False)
    tokens = _tokens(rng, 1)
    masked = np.zeros((1, 15), bool)
    masked[0, 7] = True
    changed = tokens.copy()
    changed[0, 7] = (changed[0, 7] + 1) % SIZES["vocabulary_size"]
    np.testing.assert_array_equal(model(tokens, masked), model(changed, masked))
    assert np.all(np.abs(np.subtract(model(tokens), model(changed))).max(axis=-1) > 0)


def test_the_first_loss_is_the_logarithm_of_the_vocabulary(rng):
    logits = np.asarray(ImageGPT(**SIZES)(_tokens(rng)), "float64")
    nats = -np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(nats, math.log(SIZES["vocabulary_size"]), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "side", "parameters"),
    [
        ("S", 32, 76_571_648),
        ("M", 32, 455_157_760),
        ("L", 32, 1_362_250_752),
        ("XL", 32, 6_801_438_720),
        ("XL", 64, 6_810_875_904),
    ],
)
def test_the_published_models_have_their_exact_number_of_parameters(name, side, parameters):
    num_layers, hidden_dim, num_heads = PUBLISHED[name]
    build = functools.partial(
        ImageGPT,
        image_size=(side, side),
        vocabulary_size=512,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
    )
    assert abstract_model(build).count_params() == parameters


def test_a_masked_model_is_one_sos_vector_smaller():
    causal, masked = (ImageGPT(**SIZES, causal=causal).count_params() for causal in (True, False))
    assert causal - masked == SIZES["hidden_dim"]


def test_initial_weights_have_the_published_scales():
    dim, depth = 256, 4
    model = ImageGPT(
        image_size=(16, 16), vocabulary_size=512, num_layers=depth, hidden_dim=dim, num_heads=4
    )
    block = model.blocks[-1]
    for weight, stddev in (
        (model.position_embedding, 0.01),
        (model.token_embedding, 0.02),
        (block.attention.qkv_kernel, dim**-0.5),
        (block.attention.output_kernel, (dim * depth) ** -0.5),
        (block.mlp.input_kernel, 0.02),
        (block.mlp.output_kernel, 0.02),
    ):
        np.testing.assert_allclose(np.std(weight), stddev, rtol=0.02)
    np.testing.assert_allclose(np.std(model.sos), 0.02, rtol=0.2)
    assert not np.any(model.output_embedding)
    for norm in (block.attention_norm, block.mlp_norm, model.final_norm):
        assert np.all(np.asarray(norm.scale) == 1)


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"hidden_dim": 25}, {"image_size": (0, 5)}])
def test_impossible_sizes_are_refused_in_one_line(wrong):
    with pytest.raises(InputError, match="Received: ") as caught:
        ImageGPT(**{**SIZES, **wrong})
    assert "\n" not in str(caught.value)


def test_an_abstract_model_is_not_allocated_by_later_scopes_of_keras():
    sizes = {"vocabulary_size": 8, "num_layers": 2, "hidden_dim": 16, "num_heads": 2}
    model = abstract_model(lambda: ImageGPT(image_size=(4, 4), **sizes))
    with keras.StatelessScope():
        pass  # allocates what Keras regards as uninitialized
    assert all(weight._value is None for weight in model.weights)
