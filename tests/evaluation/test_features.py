"""Claims about features: computed once, for exactly these images and this model, and complete."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from igpt_tf.data import ArrayExamples, FileExamples, digits, mixture, shards, tfrecords
from igpt_tf.errors import InputError
from igpt_tf.evaluation import encoders, low_data
from igpt_tf.evaluation.features import cached_features
from igpt_tf.evaluation.linear_probe import linear_probe
from igpt_tf.evaluation.probe import LBFGS
from igpt_tf.evaluation.splits import labelled
from igpt_tf.image_grid import write_png
from igpt_tf.savedmodel.load import SavedModel
from tests.evaluation.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SavedModel(write_tiny(tmp_path_factory.mktemp("model") / "export" / "0"))


@pytest.fixture
def examples():
    return digits().valid.take(np.arange(50))


def _counting(encoder):
    """The encoder, and the list of the sizes of the batches it is given."""
    calls = []

    def encode(images):
        calls.append(len(images))
        return encoder.encode(images)

    return dataclasses.replace(encoder, encode=encode), calls


def test_every_layer_comes_from_one_pass_and_equals_the_signature(model, examples, tmp_path):
    encoder, calls = _counting(encoders.pretrained(model))
    features = cached_features(encoder, examples, str(tmp_path), batch_size=16)
    direct = model.signature("features")(images=examples.images)["features"]
    stored = np.stack([features.open(layer) for layer in range(features.num_layers)], axis=1)
    assert len(calls) == 4  # 50 images by 16
    np.testing.assert_allclose(stored, direct, atol=1e-5)


def test_the_second_call_reads_the_cache(model, examples, tmp_path):
    encoder, calls = _counting(encoders.pretrained(model))
    first = cached_features(encoder, examples, str(tmp_path), batch_size=16)
    calls.clear()
    second = cached_features(encoder, examples, str(tmp_path), batch_size=32)
    assert calls == [] and second.folder == first.folder


def test_other_images_or_another_network_never_meet_old_features(model, examples, tmp_path):
    folders = set()
    changed = examples.images.copy()
    changed[7, 3, 3] ^= 1
    for encoder, images in (
        (encoders.pretrained(model), examples),
        (encoders.pretrained(model), ArrayExamples(changed, examples.labels)),
        (encoders.random_network(model, seed=1), examples),
        (encoders.random_network(model, seed=2), examples),
        (encoders.raw_pixels(), examples),
    ):
        folders.add(cached_features(encoder, images, str(tmp_path), batch_size=16).folder)
    assert len(folders) == 5


def test_a_model_is_known_by_its_weights(model, tmp_path):
    copy = shutil.copytree(model.path, tmp_path / "copy")
    assert encoders.folder_fingerprint(str(copy)) == encoders.folder_fingerprint(model.path)
    variables = copy / "variables" / "variables.data-00000-of-00001"
    content = bytearray(variables.read_bytes())
    content[100] ^= 1
    variables.write_bytes(content)
    assert encoders.folder_fingerprint(str(copy)) != encoders.folder_fingerprint(model.path)


def test_a_pass_that_was_cut_short_is_not_taken_for_complete(examples, tmp_path):
    def broken(images):
        raise KeyboardInterrupt

    raw = encoders.raw_pixels()
    with pytest.raises(KeyboardInterrupt):
        cached_features(
            dataclasses.replace(raw, encode=broken), examples, str(tmp_path), batch_size=16
        )
    features = cached_features(raw, examples, str(tmp_path), batch_size=16)
    np.testing.assert_array_equal(features.open(0), examples.images.reshape(50, -1))
    assert len(os.listdir(tmp_path)) == 1


def test_palette_counts_forget_where_a_colour_was(model, examples):
    encode = encoders.palette_counts(model).encode
    counts = encode(examples.images)
    assert (counts.sum(axis=-1) == 64).all()
    np.testing.assert_array_equal(encode(examples.images[:, ::-1]), counts)


def test_the_random_network_of_a_seed_is_always_the_same(model, examples):
    first, again = (encoders.random_network(model, 3).encode(examples.images) for _ in range(2))
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert first.shape == (50, 3, 16)


def test_labels_out_of_range_are_refused():
    source = digits()
    wrong = ArrayExamples(source.valid.images, np.where(source.valid.labels == 9, 12, 0))
    with pytest.raises(InputError, match="labels of the valid part must be 0 to 9"):
        labelled(dataclasses.replace(source, valid=wrong))


def test_a_probe_needs_labels_and_two_classes():
    source = digits()
    without = ArrayExamples(source.train.images)
    with pytest.raises(InputError, match="no labels"):
        labelled(dataclasses.replace(source, train=without))
    one = ArrayExamples(source.train.images, np.zeros(len(source.train)))
    with pytest.raises(InputError, match="at least two classes"):
        labelled(dataclasses.replace(source, train=one))


def test_a_subset_of_the_training_images_is_fixed_by_its_seed():
    first, again, other = (labelled(digits(), 100, seed).train.images for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    with pytest.raises(InputError, match="num_train"):
        labelled(digits(), 10_000)


def test_the_probe_reports_every_layer_beside_three_baselines(model, tmp_path):
    report = linear_probe(
        model,
        workdir=str(tmp_path),
        source=None,
        solver=LBFGS(l2=[1e-1, 1e-2]),
        num_layers=2,
        num_train=300,
    )
    assert [row["layer"] for row in report["layers"]] == [0, 1, 2]
    assert set(report["baselines"]) == {"raw_pixels", "palette_counts", "random_network"}
    assert report["measured_on"] == "valid" and report["num_images"] == {"train": 300, "valid": 360}
    assert report["baselines"]["raw_pixels"]["valid_accuracy"] > 0.9
    assert len(report["concatenated"]["layers"]) == 2


@pytest.fixture(params=["tfrecords", "mixture"])
def stored(request, tmp_path):
    """The digits as shards, or as a mixture of arrays and shards."""
    shards.write(digits(), str(tmp_path / "shards"), images_per_shard=500)
    source = tfrecords(directory=str(tmp_path / "shards"))
    return source if request.param == "tfrecords" else mixture(sources=[digits(), source])


def test_shards_and_mixtures_are_probed_as_arrays_are(model, tmp_path, stored):
    common = {"source": stored, "solver": LBFGS(l2=[1e-1]), "num_train": 300}
    probed = linear_probe(model, workdir=str(tmp_path / "probe"), **common)
    assert probed["num_images"] == {"train": 300, "valid": 360}
    assert probed["baselines"]["raw_pixels"]["valid_accuracy"] > 0.9
    few = low_data.low_data(
        model, workdir=str(tmp_path / "few"), labels_per_class=[4], num_subsets=1, **common
    )
    assert few["raw_pixels"][0]["valid_accuracy"] > 0.5


def test_features_of_randomly_cropped_photographs_are_those_of_their_centres(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path in paths:
        write_png(path, np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8"))
    raw, folders = encoders.raw_pixels(), []
    for crop in ("center", "random"):
        files = FileExamples(paths, [0, 1, 2], (8, 8), crop=crop)
        features = cached_features(raw, files, str(tmp_path / "features"), batch_size=2)
        centres = files.arrays()[0].reshape(3, -1)
        assert np.abs(features.open(0).astype(int) - centres).max() <= 2
        folders.append(features.folder)
    assert folders[0] == folders[1]


def test_a_test_part_is_what_is_reported_where_there_is_one(model, tmp_path):
    source = digits()
    test = source.valid.take(np.arange(180, 360))
    source = dataclasses.replace(source, valid=source.valid.take(np.arange(180)), test=test)
    common = {"workdir": str(tmp_path), "source": source, "solver": LBFGS(l2=[1e-1])}
    report = linear_probe(model, **common, num_train=300)
    assert report["measured_on"] == "test" and report["num_images"]["test"] == 180
    assert report["baselines"]["raw_pixels"]["test_accuracy"] > 0.9
    few = low_data.low_data(model, **common, num_train=300, labels_per_class=[4], num_subsets=3)
    [row] = few["raw_pixels"]
    assert len(row["test_accuracies"]) == 3
    assert row["test_accuracy"] == pytest.approx(np.mean(row["test_accuracies"]))
    assert row["test_deviation"] == pytest.approx(np.std(row["test_accuracies"], ddof=1))


def test_low_data_chooses_without_the_test_labels(model, tmp_path):
    source = digits()
    test = source.valid.take(np.arange(180, 360))
    shuffled = ArrayExamples(test.images, np.random.default_rng(0).permutation(test.labels))
    rows = []
    for one in (test, shuffled):
        report = low_data.low_data(
            model,
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


def test_low_data_needs_k_images_of_every_class(model, tmp_path):
    with pytest.raises(InputError, match="class . has only .* labels a class"):
        low_data.low_data(
            model, workdir=str(tmp_path), source=None, solver=LBFGS(), labels_per_class=[400]
        )
