"""Tests of the classifier in training: its loss, its predictions, its scores."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.evaluation.classifier_scores import Scorer, ensemble_masks
from igpt_tf.model import Classifier, ImageGPT
from igpt_tf.objectives import Autoregressive, Joint, Masked
from igpt_tf.palette import Palette
from igpt_tf.training.trainer import Trainer

PALETTE = Palette.grey(7)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 7, (8, 16)).astype("int32")
LABELS = (TOKENS[:, 3] % 3).astype("int32")


def classifier(*, causal=True, head=False, generative=True):
    """3 classes of 4x4 images; the head zero, or random."""
    keras.utils.set_random_seed(0)
    shape = {"image_size": (4, 4), "vocabulary_size": 7, "num_layers": 2, "hidden_dim": 8}
    network = ImageGPT(**shape, num_heads=2, causal=causal)
    network.output_embedding.assign(RNG.normal(size=(7, 8)))
    model = Classifier(network, 3, generative=generative)
    if head:
        model.head.assign(RNG.normal(size=(3, 8)))
    return model


def trainer(objective, **arguments):
    model = classifier(
        causal=objective.generative.causal, generative=objective.generative_weight > 0, **arguments
    )
    return Trainer(model, objective, keras.optimizers.Adam(0.01), PALETTE, batch_size=8)


def batch_of(objective, step=0):
    random_inputs = objective.random_inputs(seed=0, step=step, batch_size=8, sequence_length=16)
    return {"tokens": tf.constant(TOKENS), "labels": tf.constant(LABELS), **random_inputs}


@pytest.mark.parametrize("generative", [Autoregressive(), Masked(0.3)])
def test_initial_class_loss_is_log_number_of_classes(generative):
    alone = trainer(Joint(generative, generative_weight=0.0))
    assert float(alone.train_step(batch_of(alone.objective))) == pytest.approx(np.log(3), rel=1e-6)


@pytest.mark.parametrize("generative", [Autoregressive(), Masked(0.3)])
def test_joint_loss_is_the_weighted_sum_of_its_parts(generative):
    model = classifier(causal=generative.causal, head=True)
    random_inputs = generative.random_inputs(seed=0, step=0, batch_size=8, sequence_length=16)
    joint = Joint(generative, 2.0, 3.0)(model, TOKENS, LABELS, **random_inputs)
    nats = generative(model.network, TOKENS, **random_inputs)
    logits = model(TOKENS, **random_inputs)
    class_nats = keras.losses.sparse_categorical_crossentropy(LABELS, logits, from_logits=True)
    np.testing.assert_allclose(joint, 2 * np.array(nats) + 3 * np.array(class_nats), rtol=1e-5)
    alone = Joint(generative, 0.0)(model, TOKENS, LABELS, **random_inputs)
    np.testing.assert_allclose(alone, class_nats, rtol=1e-6)


def test_head_reads_the_last_of_the_features():
    model = classifier(head=True)
    features = np.array(model.network.features(TOKENS))[:, -1]
    np.testing.assert_allclose(model(TOKENS), features @ model.head.numpy().T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("generative", [Autoregressive(), Masked(0.1)])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_training_learns_the_classes_and_changes_token_predictions_only_with_a_generative_loss(
    generative, weight
):
    joint = trainer(Joint(generative, weight))
    batch, before = batch_of(joint.objective), joint.model.network.output_embedding.numpy()
    for step in range(100):
        joint.train_step(batch_of(joint.objective, step))
    scorer = Scorer(joint, ensemble_masks(generative, 3, (4, 4)))
    scores = scorer.score([{**batch, "weight": tf.ones(8)}])
    assert scores.accuracy > 0.8 and scores.class_nats < 0.7 * np.log(3)
    random_inputs = {key: value for key, value in batch.items() if key == "masked"}
    nats = np.mean(generative(joint.model.network, TOKENS, **random_inputs))
    assert scores.nats_per_token == pytest.approx(nats, rel=1e-5)
    moved = np.any(joint.model.network.output_embedding.numpy() != before)
    assert moved == bool(weight)


def test_untrained_head_is_not_scored():
    joint = Joint(Autoregressive())
    batch = {**batch_of(joint), "weight": tf.ones(8)}
    with pytest.raises(InputError, match="untrained"):
        Scorer(trainer(joint), None).score([batch])


def test_every_image_counts_once_and_padding_does_not():
    joint = Joint(Autoregressive())
    scorer = Scorer(trainer(joint, head=True), None)
    weights = tf.constant([1.0] * 5 + [0.0] * 3)
    confusion = scorer.score([{**batch_of(joint), "weight": weights}] * 2).confusion
    np.testing.assert_array_equal(confusion.sum(axis=1), 2 * np.bincount(LABELS[:5], minlength=3))


def test_masked_classifier_decides_by_the_majority_of_its_masks():
    model = classifier(causal=False, head=True)
    masks = ensemble_masks(Masked(0.5), 5, (4, 4))
    each = [keras.ops.softmax(model(TOKENS, np.tile(mask, (8, 1)))) for mask in masks]
    votes = np.argmax(np.array(each), axis=-1)
    counts = np.array([np.bincount(votes[:, i], minlength=3) for i in range(8)])
    probabilities, labels = model.classify(TOKENS, masks)
    np.testing.assert_allclose(probabilities, np.mean(each, axis=0), rtol=1e-5)
    assert (counts[np.arange(8), labels] == counts.max(axis=1)).all()
    assert len(np.unique(votes)) > 1 and len(np.unique(masks, axis=0)) == 5


def test_masks_of_an_ensemble_are_constant():
    one, two = (ensemble_masks(Masked(), 5, (4, 4)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert ensemble_masks(Autoregressive(), 5, (4, 4)) is None


@pytest.mark.parametrize("generative", [Autoregressive(), Masked(0.3)])
def test_dropout_is_a_function_of_seed_and_step_and_is_not_scored(generative):
    joint, model = Joint(generative, dropout_dim=8), classifier(causal=generative.causal, head=True)
    model.dropout = 0.5
    batch = batch_of(joint)
    noise = batch["dropout_noise"].numpy()
    assert noise.shape == (8, 8) and noise.min() >= 0 and noise.max() < 1
    np.testing.assert_array_equal(batch_of(joint)["dropout_noise"], noise)
    assert (batch_of(joint, step=1)["dropout_noise"].numpy() != noise).all()
    own = Trainer(model, joint, keras.optimizers.Adam(), PALETTE, batch_size=8)
    scorer = Scorer(own, ensemble_masks(generative, 3, (4, 4)))
    weighted = {**batch, "weight": tf.ones(8)}
    without = {key: value for key, value in weighted.items() if key != "dropout_noise"}
    assert scorer.score([weighted]).metrics == scorer.score([without]).metrics
