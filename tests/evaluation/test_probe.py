"""Claims about the linear classifiers: they find what is linear, and choose without looking."""

import gin
import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.evaluation import features, linear_probe, probe
from igpt_tf.evaluation.low_data import draw_subset

NUM_CLASSES, DIM, LAYERS, PLANTED = 3, 12, 4, 2


def _features(folder, size):
    """Noise in every layer; one tells the labels by a linear rule."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, NUM_CLASSES, size)
    folder.mkdir()
    for layer in range(LAYERS):
        values = rng.standard_normal((size, DIM)).astype("float32")
        if layer == PLANTED:
            values[np.arange(size), labels] += 3
        # An offset, a scale and a constant column, as features have them.
        values = 100 + values * 10.0 ** rng.integers(-2, 3, DIM).astype("float32")
        values[:, -1] = 7
        np.save(folder / f"layer_{layer}.npy", values)
    return features.Features(str(folder), labels)


@pytest.fixture
def parts(tmp_path):
    """Train, held-out and test images, cut from one draw."""
    whole = _features(tmp_path / "whole", 750)
    parts, start = {}, 0
    for name, size in {"train": 400, "valid": 150, "test": 200}.items():
        folder = tmp_path / f"{name}_part"
        folder.mkdir()
        for layer in range(LAYERS):
            np.save(folder / f"layer_{layer}.npy", whole.open(layer)[start : start + size])
        labels = whole.labels[start : start + size]
        parts[name], start = features.Features(str(folder), labels), start + size
    return parts


@pytest.fixture(params=["lbfgs", "sgd"])
def solver(request):
    return probe.LBFGS() if request.param == "lbfgs" else probe.SGD(num_steps=400, batch_size=64)


def test_the_probe_finds_a_planted_linear_signal_at_the_planted_layer(parts, solver):
    rows = linear_probe.probe_layers(parts, NUM_CLASSES, solver, title="")
    best = linear_probe.best_of(rows)
    assert best["layer"] == PLANTED
    assert best["valid_accuracy"] > 0.85 and best["test_accuracy"] > 0.85
    assert all(row["test_accuracy"] < 0.6 for row in rows if row["layer"] != PLANTED)


def test_test_labels_never_influence_the_chosen_layer_or_setting(parts, solver):
    before = linear_probe.probe_layers(parts, NUM_CLASSES, solver, title="")
    parts["test"].labels = np.random.default_rng(9).permutation(parts["test"].labels)
    after = linear_probe.probe_layers(parts, NUM_CLASSES, solver, title="")
    assert linear_probe.best_of(after)["layer"] == linear_probe.best_of(before)["layer"]
    chosen = [[row[solver.setting] for row in rows] for rows in (before, after)]
    assert chosen[0] == chosen[1]
    best = linear_probe.best_of(after)
    assert best["test_accuracy"] < 0.6 < linear_probe.best_of(before)["test_accuracy"]


def test_the_last_fit_learns_from_the_held_out_images_too(parts):
    # The training part alone does not know class 2.
    known = np.flatnonzero(parts["train"].labels < 2)
    train = features.Rows([parts["train"]], [PLANTED], known)
    test = features.Rows([parts["test"]], [PLANTED])
    both = features.Rows([parts["train"], parts["valid"]], [PLANTED])
    solver = probe.LBFGS()
    [without] = solver.fit(train, NUM_CLASSES, [1e-2])
    [with_valid] = solver.fit(both, NUM_CLASSES, [1e-2])
    assert without.accuracy(test) < 0.75 < with_valid.accuracy(test)
    assert len(both) == 550


def test_sgd_and_lbfgs_come_to_the_same_accuracy(parts):
    accuracies = [
        linear_probe.probe_one(parts, [PLANTED], NUM_CLASSES, solver)["test_accuracy"]
        for solver in (probe.LBFGS(), probe.SGD(num_steps=1000, batch_size=64))
    ]
    assert abs(accuracies[0] - accuracies[1]) < 0.03


def test_layers_side_by_side_are_the_columns_of_each(parts):
    rows = features.Rows([parts["train"], parts["valid"]], [3, 1])
    left = np.concatenate([parts["train"].open(3), parts["valid"].open(3)])
    right = np.concatenate([parts["train"].open(1), parts["valid"].open(1)])
    np.testing.assert_array_equal(rows.array(), np.concatenate([left, right], axis=1))
    np.testing.assert_array_equal(rows.take(np.array([410, 3])), rows.array()[[410, 3]])


def test_layers_around_the_best_stay_within_the_network():
    assert linear_probe.around(4, 3, 9) == [3, 4, 5]
    assert linear_probe.around(0, 3, 9) == [0, 1, 2]
    assert linear_probe.around(8, 5, 9) == [4, 5, 6, 7, 8]


def test_the_strongest_regularisation_that_ties_on_held_out_images_is_taken():
    rows = [{"layer": 0, "valid_accuracy": 0.5}, {"layer": 1, "valid_accuracy": 0.5}]
    assert linear_probe.best_of(rows)["layer"] == 0
    solver = probe.LBFGS(l2=[1e-3, 1e-1, 1e-2])
    assert solver.values == [1e-1, 1e-2, 1e-3]


def test_a_subset_holds_exactly_k_images_of_each_class():
    labels = np.random.default_rng(0).integers(0, 5, 300)
    subset = draw_subset(labels, 7, (3, 1))
    assert np.bincount(labels[subset]).tolist() == [7] * 5
    assert len(np.unique(subset)) == len(subset)
    np.testing.assert_array_equal(subset, draw_subset(labels, 7, (3, 1)))
    assert subset.tolist() != draw_subset(labels, 7, (3, 2)).tolist()


def test_gin_refuses_strengths_that_are_not_positive():
    with pytest.raises(InputError, match="lbfgs.l2"):
        probe.LBFGS(l2=[1.0, 0.0])
    gin.parse_config("sgd.learning_rates = 3")
    with pytest.raises(InputError, match="sgd.learning_rates"):
        gin.get_configurable("sgd")()
