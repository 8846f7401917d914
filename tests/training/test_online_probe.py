"""Claims about the online probe: it sees features get better, and changes nothing."""

import contextlib
import dataclasses

import numpy as np
import pytest

from igpt_tf.data import ArrayExamples, digits
from igpt_tf.training.online_probe import online_probe, ridge_accuracy
from tests.training.test_trainer import losses, small_trainer


class Written:
    """Stands in for `Summaries`."""

    def __init__(self):
        self.lines = []

    def scalars(self, step, split, **values):
        self.lines.append({"step": step, "split": split, **values})


def source_of(labels_of):
    """4x4 images whose class is their brightness; `labels_of` classes -> labels."""
    rng = np.random.default_rng(0)
    parts = []
    for number in (60, 40):
        classes = rng.integers(0, 3, number)
        noise = rng.integers(0, 60, (number, 4, 4, 1))
        images = np.repeat(noise + 90 * classes[:, None, None, None], 3, axis=-1).astype("uint8")
        parts.append(ArrayExamples(images, labels_of(classes)))
    return dataclasses.replace(digits(), train=parts[0], valid=parts[1])


def probe_of(trainer, source, written=None):
    return online_probe(trainer, source, 50, written or Written(), contextlib.nullcontext)


def test_ridge_regression_tells_classes_that_a_line_tells_and_no_others():
    rng = np.random.default_rng(0)
    features, noise = rng.normal(size=(2, 400, 5))
    classes = (features[:, 0] > 0).astype(int)
    fitted = ridge_accuracy(features[:200], classes[:200], features[200:], classes[200:])
    by_chance = ridge_accuracy(noise[:200], classes[:200], noise[200:], classes[200:])
    assert fitted > 0.95 and 0.3 < by_chance < 0.7


def test_the_probe_names_the_best_layer_and_its_held_out_accuracy():
    written = Written()
    probe_of(small_trainer(), source_of(lambda classes: classes + 4), written)(30)
    [line] = written.lines
    assert (line["step"], line["split"]) == (30, "valid")
    assert line["probe_accuracy"] > 0.9 and line["probe_layer"] in (0, 1, 2)


def test_labels_that_training_images_lack_are_never_counted_as_right():
    source = source_of(lambda classes: classes)
    written = Written()
    unseen = ArrayExamples(source.valid.images, np.full(40, 7))
    probe_of(small_trainer(), dataclasses.replace(source, valid=unseen), written)(0)
    assert written.lines[0]["probe_accuracy"] == 0


@pytest.mark.parametrize("labels_of", [lambda classes: None, np.zeros_like])
def test_without_labels_or_with_one_class_there_is_no_probe_and_the_log_says_so(labels_of, caplog):
    assert probe_of(small_trainer(), source_of(labels_of)) is None
    assert "no online probe" in caplog.text


def test_probing_between_steps_changes_no_bit_of_the_training():
    alone, probed = small_trainer(), small_trainer()
    probe = probe_of(probed, source_of(lambda classes: classes))
    for _ in range(2):
        assert losses(alone) == losses(probed)
        probe(0)
    for one, other in zip(alone.model.get_weights(), probed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
