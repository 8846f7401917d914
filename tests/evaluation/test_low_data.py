"""Low-data classification, and the labelled splits that probes share."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from igpt_tf.data import ArrayExamples, Source, digits, mixture, tfrecords
from igpt_tf.data.tfrecords import write_shards
from igpt_tf.errors import InputError
from igpt_tf.evaluation.linear_probe import LBFGS
from igpt_tf.evaluation.low_data import format_report, low_data
from igpt_tf.evaluation.splits import draw_subset, labelled_splits, resolve_source
from tests.evaluation.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "export" / "0")


def test_labels_out_of_range_are_refused():
    source = digits()
    wrong = ArrayExamples(source.valid.images, np.where(source.valid.labels == 9, 12, 0))
    with pytest.raises(InputError, match="labels of the valid split must be 0 to 9"):
        labelled_splits(dataclasses.replace(source, valid=wrong))


def test_labels_and_two_classes_are_required():
    source = digits()
    unlabelled = ArrayExamples(source.train.images)
    with pytest.raises(InputError, match="no labels"):
        labelled_splits(dataclasses.replace(source, train=unlabelled))
    one_class = ArrayExamples(source.train.images, np.zeros(len(source.train)))
    with pytest.raises(InputError, match="at least two classes"):
        labelled_splits(dataclasses.replace(source, train=one_class))


def test_training_images_are_chosen_by_the_seed():
    first, again, other = (labelled_splits(digits(), 100, seed).train.images for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    with pytest.raises(InputError, match="num_train"):
        labelled_splits(digits(), 10_000)


def test_training_images_are_chosen_per_class():
    splits = labelled_splits(digits(), seed=3, labels_per_class=4)
    assert np.bincount(splits.train.labels).tolist() == [4] * 10
    assert splits.sizes == {"train": 40, "valid": 360}
    with pytest.raises(InputError, match="labels_per_class=400"):
        labelled_splits(digits(), labels_per_class=400)
    with pytest.raises(InputError, match="num_train or by labels_per_class"):
        labelled_splits(digits(), 100, labels_per_class=4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "evaluate.source="),
        ({"name": "mine"}, "import MODULE"),
        # As a tool finds it that is started in another folder than the run.
        (
            {"name": "npz", "arguments": {"path": "data/mine.npz"}},
            "in the folder where the run was started.*evaluate.source=.*path='data/mine.npz'",
        ),
    ],
)
def test_unknown_training_data_are_refused_with_the_binding_to_pass(data, message):
    model = SimpleNamespace(metadata={"data": data}, path="model", image_size=(8, 8))
    with pytest.raises(InputError, match=message):
        resolve_source(model, None, "evaluate")


def test_changed_training_data_are_warned_about(capsys):
    description = digits().description
    for fingerprint, warned in ((None, False), (digits().fingerprint(), False), ("0", True)):
        data = {**description, "fingerprint": fingerprint}
        model = SimpleNamespace(metadata={"data": data}, path="model", image_size=(8, 8))
        resolve_source(model, None, "evaluate")
        assert ("has changed" in capsys.readouterr().err) == warned
    resolve_source(model, digits(), "evaluate")  # another data set, named by the user
    assert capsys.readouterr().err == ""


@pytest.fixture(params=["tfrecords", "mixture"])
def stored(request, tmp_path):
    """The digits as shards, or as a mixture of arrays and shards."""
    write_shards(digits(), str(tmp_path / "shards"), images_per_shard=500)
    source = tfrecords(directory=str(tmp_path / "shards"))
    return source if request.param == "tfrecords" else mixture(sources=[digits(), source])


def test_shards_and_mixtures_are_used_like_arrays(model, tmp_path, stored):
    report = low_data(
        saved_model=model,
        workdir=str(tmp_path),
        source=stored,
        solver=LBFGS(l2=[1e-1]),
        num_train=300,
        labels_per_class=[4],
        num_subsets=1,
    )
    assert report["num_images"] == {"train": 300, "valid": 360}
    assert report["raw_pixels"][0]["valid_accuracy"] > 0.5


def test_statistics_over_subsets_are_reported_for_the_test_split(model, tmp_path):
    source = digits()
    test = source.valid.take(np.arange(180, 360))
    report = low_data(
        saved_model=model,
        workdir=str(tmp_path),
        source=dataclasses.replace(source, valid=source.valid.take(np.arange(180)), test=test),
        solver=LBFGS(l2=[1e-1]),
        num_train=300,
        labels_per_class=[4],
        num_subsets=3,
    )
    [row] = report["raw_pixels"]
    assert len(row["test_accuracies"]) == 3
    assert row["test_accuracy"] == pytest.approx(np.mean(row["test_accuracies"]))
    assert row["test_deviation"] == pytest.approx(np.std(row["test_accuracies"], ddof=1))
    low, high = row["test_interval"]
    assert low < row["test_accuracy"] < high
    assert "test (n=180)" in format_report(report)


def test_choices_are_made_without_the_test_labels(model, tmp_path):
    source = digits()
    test = source.valid.take(np.arange(180, 360))
    shuffled = ArrayExamples(test.images, np.random.default_rng(0).permutation(test.labels))
    rows = []
    for one in (test, shuffled):
        report = low_data(
            saved_model=model,
            workdir=str(tmp_path),
            source=dataclasses.replace(source, test=one),
            solver=LBFGS(l2=[1e-1, 1e-2]),
            labels_per_class=[4],
            num_subsets=2,
        )
        rows.append(report["pretrained_network"][0])
    for name in ("layer", "l2", "valid_accuracies"):
        assert rows[0][name] == rows[1][name]
    assert rows[0]["test_accuracies"] != rows[1]["test_accuracies"]


def test_every_class_needs_k_images(model, tmp_path):
    with pytest.raises(InputError, match="class . has only .* labels per class"):
        low_data(saved_model=model, workdir=str(tmp_path), labels_per_class=[400])


def test_subset_has_k_images_of_each_class():
    labels = np.random.default_rng(0).integers(0, 5, 300)
    subset = draw_subset(labels, 7, (3, 1))
    assert np.bincount(labels[subset]).tolist() == [7] * 5
    assert len(np.unique(subset)) == len(subset)
    np.testing.assert_array_equal(subset, draw_subset(labels, 7, (3, 1)))
    assert subset.tolist() != draw_subset(labels, 7, (3, 2)).tolist()


def test_images_of_classes_without_training_images_are_warned_about(capsys):
    images = np.zeros((6, 4, 4, 3), "uint8")
    train, valid, test = (
        ArrayExamples(images, np.array(labels))
        for labels in ([0, 1] * 3, [1] * 6, [0, 1, 3, 4, 4, 4])
    )
    labelled_splits(Source(train, valid, test, tuple("abcde")))
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "4 of the 6 test images" in printed
    assert "such as class 3" in printed
