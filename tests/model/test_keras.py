"""The models as ordinary Keras models: saving, functional models, compile and fit, export."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import Classifier, ImageGPT

SIZES = {
    "image_size": (4, 4),
    "vocabulary_size": 8,
    "num_layers": 2,
    "hidden_dim": 16,
    "num_heads": 2,
}
TOKENS = np.random.default_rng(0).integers(0, 8, (8, 16)).astype("int32")


def nats_per_token():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = ImageGPT(**SIZES)
    model.output_embedding.assign(keras.random.normal(model.output_embedding.shape))
    return model


@pytest.fixture(scope="module")
def classifier(model):
    classifier = Classifier(model, 3, generative=True, dropout=0.3)
    classifier.head.assign(keras.random.normal(classifier.head.shape))
    return classifier


@pytest.mark.parametrize("name", ["model", "classifier"])
def test_a_saved_model_gives_the_same_logits(name, request, tmp_path):
    original = request.getfixturevalue(name)
    original.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(original) and loaded.get_config() == original.get_config()
    np.testing.assert_array_equal(loaded(TOKENS), original(TOKENS))


@pytest.mark.parametrize("generative", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_head_on_a_layer_reads_its_features_and_trains_what_it_depends_on(layer, generative):
    network = ImageGPT(**SIZES)
    classifier = Classifier(network, 3, layer=layer, generative=generative)
    classifier.head.assign(keras.random.normal(classifier.head.shape))
    expected = network.features(TOKENS)[:, layer] @ tf.transpose(classifier.head)
    np.testing.assert_allclose(classifier(TOKENS), expected, rtol=1e-5, atol=1e-6)

    variables = classifier.trainable_variables
    assert (len(variables) == len(classifier.variables)) == generative
    with tf.GradientTape() as tape:
        final, logits = classifier.hidden_and_class_logits(TOKENS)
        loss = tf.reduce_sum(logits**2)
        if generative:
            loss += tf.reduce_sum(network.token_logits(final) ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    assert all(gradient is not None for gradient in gradients)


def test_a_head_on_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="layers 0 to 2; 2 is the final norm. Received: layer=3"):
        Classifier(ImageGPT(**SIZES), 3, layer=3)


def test_dropout_sets_features_of_the_head_to_zero_in_training_only(classifier):
    noise = np.random.default_rng(0).random((8, 16)).astype("float32")
    features = np.asarray(classifier.network.features(TOKENS))[:, -1]
    head = classifier.head.numpy().T
    _, dropped = classifier.hidden_and_class_logits(TOKENS, dropout_noise=noise)
    np.testing.assert_allclose(
        dropped, np.where(noise < 0.3, 0, features / 0.7) @ head, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(classifier(TOKENS), features @ head, rtol=1e-4, atol=1e-5)
    first, second = (np.asarray(classifier(TOKENS, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


def test_dropout_of_everything_is_refused():
    with pytest.raises(InputError, match="below 1. Received: dropout=1"):
        Classifier(ImageGPT(**SIZES), 3, dropout=1)


def test_saved_weights_give_the_same_logits(model, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = ImageGPT(**SIZES)
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(loaded(TOKENS), model(TOKENS))


def test_the_config_of_every_layer_rebuilds_it(model):
    for layer in (model.blocks[1], model.blocks[1].attention, model.blocks[1].mlp):
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert type(copy) is type(layer) and copy.get_config() == layer.get_config()


def test_the_config_keeps_remat_and_precision():
    model = ImageGPT(**SIZES, causal=False, remat=True, dtype="mixed_bfloat16")
    copy = ImageGPT.from_config(model.get_config())
    assert copy.remat and not copy.causal
    assert copy.blocks[0].mlp.compute_dtype == copy.compute_dtype == "bfloat16"
    assert copy(TOKENS.astype("float32")).dtype == "float32"
    np.testing.assert_array_equal(ImageGPT(**copy.architecture)(TOKENS).shape, (8, 16, 8))


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_tokens_of_other_types_are_cast(model, dtype):
    np.testing.assert_array_equal(model(TOKENS.astype(dtype)), model(TOKENS))


def test_shapes_of_symbolic_inputs_are_inferred(model, classifier):
    inputs = keras.Input((16,))
    assert model(inputs).shape == (None, 16, 8)
    assert classifier(inputs).shape == (None, 3)
    functional = keras.Model(inputs, model(inputs))
    np.testing.assert_array_equal(functional(TOKENS), model(TOKENS))


def test_the_summary_lists_layers_shapes_and_all_weights(model):
    lines = []
    model.summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "block_1 (Block)" in text and "(None, 16, 16)" in text
    assert f"{model.count_params():,}" in text


def test_features_are_a_layer_of_a_functional_model(model, tmp_path):
    inputs = keras.Input((16,))
    outputs = keras.layers.Dense(3)(model.features(inputs)[:, 1])
    probe = keras.Model(inputs, outputs)
    assert len(probe.trainable_variables) == len(model.trainable_variables) + 2
    probe.save(tmp_path / "probe.keras")
    loaded = keras.saving.load_model(tmp_path / "probe.keras")
    np.testing.assert_array_equal(loaded(TOKENS), probe(TOKENS))
    kernel, bias = probe.layers[-1].weights
    expected = np.asarray(model.features(TOKENS))[:, 1] @ np.asarray(kernel) + np.asarray(bias)
    np.testing.assert_allclose(probe(TOKENS), expected, atol=1e-5)


def test_fit_lowers_the_loss_in_nats_per_token():
    keras.utils.set_random_seed(0)
    model = ImageGPT(**SIZES)
    model.compile(keras.optimizers.Adam(0.01), nats_per_token())
    losses = model.fit(TOKENS, TOKENS, epochs=3, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(np.log(8)) and losses[2] < losses[0]
    assert model.evaluate(TOKENS, TOKENS, verbose=0) < losses[2]


def test_fit_trains_a_masked_model_on_masked_tokens():
    keras.utils.set_random_seed(0)
    model = ImageGPT(**SIZES, causal=False)
    model.compile(keras.optimizers.Adam(0.01), nats_per_token(), jit_compile=False)
    masked = np.random.default_rng(1).random(TOKENS.shape) < 0.5
    inputs = {"tokens": TOKENS, "masked": masked}
    history = model.fit(inputs, TOKENS, sample_weight=masked.astype("float32"), epochs=3, verbose=0)
    losses = history.history["loss"]
    assert losses[0] == pytest.approx(np.log(8) * masked.mean(), rel=1e-5)
    assert losses[2] < losses[0]


def test_an_exported_model_gives_the_same_logits(model, tmp_path):
    logits = model(TOKENS)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(served.serve(TOKENS.astype("float32")), logits, atol=1e-5)


MIRRORED = """
import keras, numpy as np, tensorflow as tf
[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.model.test_keras import SIZES, TOKENS, ImageGPT, nats_per_token

def losses(strategy, tokens):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = ImageGPT(**{**SIZES, "num_layers": 1})
        model.compile(keras.optimizers.Adam(0.01), nats_per_token(), jit_compile=False)
    fitted = model.fit(tokens, tokens, batch_size=4, epochs=2, shuffle=False, verbose=0)
    return fitted.history["loss"]

tokens = TOKENS[:7]  # the last batch has 2 images on one replica and 1 on the other
one = losses(tf.distribute.get_strategy(), tokens)
two = losses(tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]), tokens.astype("float32"))
np.testing.assert_allclose(one[0], np.log(8), rtol=0.01)
np.testing.assert_allclose(two, one, rtol=0.01)
"""

BACKEND = """
import keras, numpy as np
from igpt_tf.model import ImageGPT
tokens = np.arange(128).reshape(8, 16) % 8
keras.utils.set_random_seed(0)
sizes = dict(image_size=(4, 4), vocabulary_size=8, num_layers=2, hidden_dim=16, num_heads=2)
for remat in (False, True):
    model = ImageGPT(**sizes, remat=remat)
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    losses = model.fit(tokens, tokens, epochs=4, verbose=0).history["loss"]
    assert losses[3] < losses[0] - 0.01, losses
assert model.features(tokens).shape == (8, 3, 16)
assert model(keras.Input((16,))).shape == (None, 16, 8)
"""


def run(script, **environment):
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_fit_works_on_two_replicas_with_unequal_batches():
    run(MIRRORED)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_model_trains_on_other_backends(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    run(BACKEND, KERAS_BACKEND=backend)
