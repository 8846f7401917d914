"""Linear probe: solvers find linear signals; choices are made on held-out images only."""

import dataclasses
import json
from pathlib import Path

import gin
import numpy as np
import pytest

from igpt_tf.data import digits
from igpt_tf.errors import InputError
from igpt_tf.evaluation import features, linear_probe
from igpt_tf.evaluation.features import FeatureMatrix
from igpt_tf.evaluation.linear_probe import LBFGS, SGD
from igpt_tf.evaluation.low_data import low_data
from igpt_tf.formatting import few_images_warning, wilson_interval
from tests.evaluation.tiny import write_tiny

NUM_CLASSES, DIM, LAYERS, PLANTED = 3, 12, 4, 2


def _features(folder, size):
    """Noise in every layer; the planted one encodes the labels by a linear rule."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, NUM_CLASSES, size)
    folder.mkdir()
    for layer in range(LAYERS):
        values = rng.standard_normal((size, DIM)).astype("float32")
        if layer == PLANTED:
            values[np.arange(size), labels] += 3
        # An offset, different scales and a constant column, as features have them.
        values = 100 + values * 10.0 ** rng.integers(-2, 3, DIM).astype("float32")
        values[:, -1] = 7
        np.save(folder / f"layer_{layer}.npy", values)
    return features.Features(str(folder), labels)


@pytest.fixture
def views(tmp_path):
    """Train, held-out and test images with one view each, cut from one sample."""
    whole = _features(tmp_path / "whole", 750)
    views, start = {}, 0
    for name, size in {"train": 400, "valid": 150, "test": 200}.items():
        folder = tmp_path / f"{name}_part"
        folder.mkdir()
        for layer in range(LAYERS):
            np.save(folder / f"layer_{layer}.npy", whole.open(layer)[start : start + size])
        labels = whole.labels[start : start + size]
        views[name], start = [features.Features(str(folder), labels)], start + size
    return views


@pytest.fixture(params=["lbfgs", "sgd"])
def solver(request):
    return LBFGS() if request.param == "lbfgs" else SGD(num_steps=400, batch_size=64)


def test_probe_finds_planted_signal_at_planted_layer(views, solver):
    rows = linear_probe.probe_layers(views, NUM_CLASSES, solver, title="")
    best = linear_probe.best_row(rows)
    assert best["layer"] == PLANTED
    assert best["valid_accuracy"] > 0.85 and best["test_accuracy"] > 0.85
    assert all(row["test_accuracy"] < 0.6 for row in rows if row["layer"] != PLANTED)
    low, high = best["test_interval"]
    assert low < best["test_accuracy"] < high


def test_test_labels_do_not_influence_chosen_layer_or_setting(views, solver):
    before = linear_probe.probe_layers(views, NUM_CLASSES, solver, title="")
    [test] = views["test"]
    test.labels = np.random.default_rng(9).permutation(test.labels)
    after = linear_probe.probe_layers(views, NUM_CLASSES, solver, title="")
    assert linear_probe.best_row(after)["layer"] == linear_probe.best_row(before)["layer"]
    chosen = [[row[solver.setting] for row in rows] for rows in (before, after)]
    assert chosen[0] == chosen[1]
    best = linear_probe.best_row(after)
    assert best["test_accuracy"] < 0.6 < linear_probe.best_row(before)["test_accuracy"]


def test_final_fit_uses_held_out_images_too(views):
    # Class 2 is removed from the training images.
    rows = np.flatnonzero(views["train"][0].labels < 2)
    train = FeatureMatrix(views["train"], [PLANTED], rows)
    test = FeatureMatrix(views["test"], [PLANTED])
    both = FeatureMatrix([*views["train"], *views["valid"]], [PLANTED])
    [without] = LBFGS().fit(train, NUM_CLASSES, [1e-2])
    [with_valid] = LBFGS().fit(both, NUM_CLASSES, [1e-2])
    assert without.accuracy(test) < 0.75 < with_valid.accuracy(test)
    assert len(both) == 550


def test_sgd_and_lbfgs_reach_the_same_accuracy(views):
    accuracies = [
        linear_probe.probe_one(views, [PLANTED], NUM_CLASSES, solver)["test_accuracy"]
        for solver in (LBFGS(), SGD(num_steps=1000, batch_size=64))
    ]
    assert abs(accuracies[0] - accuracies[1]) < 0.03


def test_concatenated_layers_are_the_columns_of_each(views):
    matrix = FeatureMatrix([*views["train"], *views["valid"]], [3, 1])
    parts = [views["train"][0], views["valid"][0]]
    left = np.concatenate([part.open(3) for part in parts])
    right = np.concatenate([part.open(1) for part in parts])
    np.testing.assert_array_equal(matrix.array(), np.concatenate([left, right], axis=1))
    np.testing.assert_array_equal(matrix.take(np.array([410, 3])), matrix.array()[[410, 3]])


def test_neighbouring_layers_stay_within_the_network():
    assert linear_probe.neighbouring_layers(4, 3, 9) == [3, 4, 5]
    assert linear_probe.neighbouring_layers(0, 3, 9) == [0, 1, 2]
    assert linear_probe.neighbouring_layers(8, 5, 9) == [4, 5, 6, 7, 8]


def test_ties_go_to_the_first_layer_and_the_strongest_regularisation():
    rows = [{"layer": 0, "valid_accuracy": 0.5}, {"layer": 1, "valid_accuracy": 0.5}]
    assert linear_probe.best_row(rows)["layer"] == 0
    assert LBFGS(l2=[1e-3, 1e-1, 1e-2]).values == [1e-1, 1e-2, 1e-3]


def test_majority_of_masks_decides_and_ties_go_to_the_earliest_mask():
    predictions = np.array([[0, 2, 1], [1, 2, 0], [1, 0, 2], [0, 1, 0], [2, 1, 1]])
    np.testing.assert_array_equal(linear_probe.majority(predictions, 3), [0, 2, 1])


def test_settings_that_are_not_positive_are_refused():
    with pytest.raises(InputError, match="lbfgs.l2"):
        LBFGS(l2=[1.0, 0.0])
    gin.parse_config("sgd.learning_rates = 3")
    with pytest.raises(InputError, match="sgd.learning_rates"):
        gin.get_configurable("sgd")()


def test_wilson_interval_has_the_values_of_the_literature():
    # scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson_interval(0.9, 10), [0.596, 0.982], atol=1e-3)
    np.testing.assert_allclose(wilson_interval(1.0, 3), [0.438, 1.0], atol=1e-3)
    np.testing.assert_allclose(wilson_interval(0.0, 3), [0.0, 0.562], atol=1e-3)
    assert few_images_warning(99) and not few_images_warning(100)


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """Arguments of the probes of one model; features are computed once."""
    folder = tmp_path_factory.mktemp("probe")
    model = write_tiny(folder / "export" / "0")
    return {"saved_model": model, "workdir": str(folder), "num_train": 300}


def test_report_has_every_layer_and_three_baselines(common):
    report = linear_probe.linear_probe(**common, solver=LBFGS(l2=[1e-1, 1e-2]), layers=2)
    assert [row["layer"] for row in report["layers"]] == [0, 1, 2]
    assert set(report["baselines"]) == {"raw_pixels", "palette_counts", "untrained_network"}
    assert report["measured_on"] == "valid" and report["num_images"] == {"train": 300, "valid": 360}
    assert report["baselines"]["raw_pixels"]["valid_accuracy"] > 0.9
    assert len(report["concatenated"]["layers"]) == 2 and report["num_masks"] == 0
    written = Path(common["workdir"], "linear_probe.json").read_text()
    assert json.loads(written) == report
    text = linear_probe.format_report(report)
    low, high = (100 * bound for bound in report["best_layer"]["valid_interval"])
    assert "held-out (n=360)" in text and f"{low:.1f} to {high:.1f} %" in text
    assert "Warning" not in text


def test_images_of_a_split_are_read_once_for_all_encoders(common, tmp_path, monkeypatch):
    read, batches = [], features.evaluation_batches

    def counting(examples, **options):
        read.append(len(examples))
        return batches(examples, **options)

    monkeypatch.setattr(features, "evaluation_batches", counting)
    arguments = {**common, "workdir": str(tmp_path), "solver": LBFGS(l2=[1e-1])}
    report = linear_probe.linear_probe(**arguments)
    assert read == [300, 360]
    assert linear_probe.linear_probe(**arguments) == report
    low_data(**arguments, labels_per_class=[2], num_subsets=1)
    assert read == [300, 360]


def test_test_split_is_reported_where_there_is_one(common):
    source = digits()
    # The same images, so that their features are reused.
    source = dataclasses.replace(source, test=source.valid)
    report = linear_probe.linear_probe(**common, source=source, solver=LBFGS(l2=[1e-1]))
    assert report["measured_on"] == "test" and report["num_images"]["test"] == 360
    # Fitted on these images too.
    row = report["baselines"]["raw_pixels"]
    assert row["test_accuracy"] > row["valid_accuracy"] > 0.9
    assert "test (n=360)" in linear_probe.format_report(report)


def test_few_held_out_images_are_warned_about(common):
    source = digits()
    source = dataclasses.replace(source, valid=source.valid.take(np.arange(3)))
    report = linear_probe.linear_probe(**common, source=source, solver=LBFGS(l2=[1e-1]))
    assert "Warning: measured on 3 images only" in linear_probe.format_report(report)


def test_masked_model_is_probed_with_masked_inputs_and_votes(tmp_path):
    common = {
        "saved_model": write_tiny(tmp_path / "export" / "0", causal=False, num_layers=1),
        "workdir": str(tmp_path),
        "source": dataclasses.replace(digits(), test=digits().valid.take(np.arange(100))),
        "solver": LBFGS(l2=[1e-1]),
        "num_train": 200,
    }
    report = linear_probe.linear_probe(**common, num_masks=3)
    row = report["best_layer"]
    assert report["num_masks"] == 3
    assert row["test_accuracy"] != row["test_accuracy_one_mask"]
    text = linear_probe.format_report(report)
    assert "majority of 3 masks" in text
    assert f"{100 * row['test_accuracy_one_mask']:.1f} % with one mask" in text
    unmasked = linear_probe.linear_probe(**common, num_masks=0)
    without = report["baselines"]["pretrained_network_without_masks"]
    assert unmasked["layers"] == without["layers"] and unmasked["num_masks"] == 0
