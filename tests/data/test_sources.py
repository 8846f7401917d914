import json
import pathlib

import gin
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.data import digits, npz, source_from_description, tfds_dataset
from igpt_tf.data.examples import ArrayExamples
from igpt_tf.data.sources import heldout_split
from igpt_tf.errors import InputError

GIN_FILES = [
    path
    for path in sorted(pathlib.Path("gin/datasets").glob("*.gin"))
    if "include" not in path.read_text()
]


def test_the_heldout_split_never_overlaps_the_training_split(examples):
    train, valid = heldout_split(examples, 0.1, seed=0)
    assert (len(train), len(valid)) == (45, 5)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([train.labels, valid.labels])), np.arange(50)
    )
    np.testing.assert_array_equal(train.images[:, 0, 0, 0], train.labels)


def test_the_heldout_split_depends_on_its_seed_alone(examples):
    splits = [heldout_split(examples, 0.2, seed)[1].labels for seed in (0, 0, 1)]
    np.testing.assert_array_equal(splits[0], splits[1])
    assert (splits[0] != splits[2]).any()


@pytest.mark.parametrize("heldout", [0, 1, -0.1, 0.99])
def test_a_split_without_images_on_both_sides_is_refused(examples, heldout):
    with pytest.raises(InputError, match="held-out fraction"):
        heldout_split(examples, heldout, seed=0)


def test_digits_are_1797_grey_images_of_17_levels():
    source = digits()
    assert (len(source.train), len(source.valid), source.test) == (1437, 360, None)
    images = np.concatenate([source.train.images, source.valid.images])
    assert images.shape[1:] == (8, 8, 3) and source.image_size == (8, 8)
    assert (images == images[..., :1]).all()
    np.testing.assert_array_equal(np.unique(images), np.rint(np.arange(17) * 255 / 16))
    assert source.class_names == tuple("0123456789")


def test_a_source_is_rebuilt_from_its_description():
    source = digits(seed=5)
    description = json.loads(json.dumps(source.description))
    assert description == {
        "name": "digits",
        "arguments": {"heldout": 0.2, "seed": 5},
        "module": "igpt_tf.data.digits",
    }
    again = source_from_description(description)
    np.testing.assert_array_equal(source.valid.images, again.valid.images)
    assert again.description == description


def test_a_source_of_the_users_module_is_imported_after_flags_were_parsed(tmp_path, monkeypatch):
    (tmp_path / "my_dots.py").write_text(
        "from igpt_tf.data import digits, register\n\n\n"
        "@register\ndef dots(*, heldout: float = 0.5):\n    return digits(heldout=heldout)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    description = {"name": "dots", "arguments": {"heldout": 0.25}, "module": "my_dots"}
    gin.finalize()
    source = source_from_description(description)
    assert source.description == description and len(source.valid) == 450


@pytest.mark.parametrize(
    "description", [{"name": "imagenet"}, {}, {"name": "digits", "arguments": {"side": 8}}]
)
def test_a_description_of_no_source_is_refused(description):
    with pytest.raises(InputError):
        source_from_description(description)


@pytest.mark.parametrize("path", GIN_FILES, ids=lambda path: path.stem)
def test_every_data_set_file_binds_arguments_its_source_has(path):
    name = {"tfds": "tfds_dataset"}.get(path.stem, path.stem)
    lines = path.read_text().splitlines()
    assert f"train.source = @{name}()" in lines
    others = ("train.", "grey_palette.", "load_palette.")  # not registered by `data`
    own = [line for line in lines if not line.startswith(others)]
    try:
        gin.parse_config(own)  # a misspelt name or argument raises
        assert gin.get_bindings(name).get("heldout", 0.1) > 0
    finally:
        gin.clear_config()


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_npz_holds_images_and_labels(tmp_path, examples):
    path = save(tmp_path / "a.npz", images=examples.images, labels=examples.labels)
    source = npz(path=path)
    assert (len(source.train), len(source.valid), source.test) == (45, 5, None)
    assert len(source.class_names) == 50
    np.testing.assert_array_equal(source.valid.images, examples.images[source.valid.labels])


def test_npz_parts_of_its_own_are_used(tmp_path, examples):
    grey = examples.images[..., 0]
    path = save(
        tmp_path / "a.npz",
        train_images=grey,
        train_labels=np.zeros((50, 1), "uint8"),
        val_images=grey[:3],
        val_labels=np.ones(3, "int64"),
        test_images=grey[:2],
        test_labels=[0, 1],
    )
    source = npz(path=path, image_size=4)
    assert (len(source.train), len(source.valid), len(source.test)) == (50, 3, 2)
    assert source.class_names == ("0", "1")
    means = grey[:3].reshape(3, 4, 2, 4, 2).mean(axis=(2, 4))
    assert np.abs(source.valid.images[..., 0] - means).max() <= 0.5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((3, 4, 4), "uint8")}, "no array called"),
        ({"images": np.zeros((3, 4, 4), "float32")}, "dtype=float32"),
        ({"images": np.zeros((3, 4), "uint8")}, r"shape=\(3, 4\)"),
        ({"images": np.zeros((3, 4, 4, 2), "uint8")}, r"shape=\(3, 4, 4, 2\)"),
        ({"images": np.zeros((0, 4, 4), "uint8")}, "at least one"),
        ({"images": np.zeros((3, 4, 4), "uint8"), "labels": [0, 1]}, "one per image"),
        ({"images": np.zeros((3, 4, 4), "uint8"), "labels": [0, 1, -1]}, "lowest=-1"),
        ({"images": np.zeros((3, 4, 4), "uint8"), "labels": [0.5, 1, 2]}, "integers"),
        ({"images": np.array([{}, {}], dtype=object)}, "Python objects"),
        (
            {"images": np.zeros((3, 4, 4), "uint8"), "test_images": np.zeros((3, 5, 4), "uint8")},
            "differ in size",
        ),
        (
            {
                "images": np.zeros((3, 4, 4), "uint8"),
                "test_images": np.zeros((3, 4, 4), "uint8"),
                "test_labels": [0, 1, 2],
            },
            "some have none",
        ),
    ],
)
def test_npz_arrays_of_another_kind_are_refused(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        npz(path=save(tmp_path / "a.npz", **arrays))


def test_a_missing_a_cut_and_a_foreign_npz_file_are_refused(tmp_path, examples):
    path = save(tmp_path / "a.npz", images=examples.images)
    content = pathlib.Path(path).read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    np.save(tmp_path / "array.npy", examples.images)
    for name in ("missing.npz", "cut.npz", "array.npy"):
        with pytest.raises(InputError, match=name):
            npz(path=str(tmp_path / name))


def test_images_are_never_enlarged(tmp_path, examples):
    path = save(tmp_path / "a.npz", images=examples.images)
    with pytest.raises(InputError, match="8x8 pixels are smaller than image_size 16x16"):
        npz(path=path, image_size=16)


@pytest.mark.parametrize("image_size", [0, (8,), (8, 8, 3), 4.5, (4, -4), "88"])
def test_an_image_size_is_one_or_two_positive_integers(tmp_path, examples, image_size):
    path = save(tmp_path / "a.npz", images=examples.images)
    with pytest.raises(InputError, match="image_size"):
        npz(path=path, image_size=image_size)


def test_an_unknown_tfds_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="no_such_set") as caught:
        tfds_dataset(name="no_such_set", image_size=8, data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tfds_data_set_is_loaded_shrunk_and_split(tmp_path, examples):
    pytest.importorskip("importlib_resources")  # TFDS uses it undeclared
    import tensorflow_datasets as tfds

    rows = {"image": examples.images, "label": examples.labels % 2}
    stored = tf.data.Dataset.from_tensor_slices(rows)
    label = tfds.features.ClassLabel(names=["even", "odd"])
    image = tfds.features.Image(shape=(8, 8, 3))
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_datasets={"train": stored.take(50), "test": stored.take(5)},
        data_dir=tmp_path,
    )
    source = tfds_dataset(name="tiny", image_size=8, data_dir=str(tmp_path))
    assert (len(source.train), len(source.valid), len(source.test)) == (45, 5, 5)
    numbers = source.train.images[:, 0, 0, 0]  # each image's first pixel is its number
    np.testing.assert_array_equal(source.train.labels, numbers % 2)
    assert source.class_names == ("even", "odd")
    with pytest.raises(InputError, match="smaller than image_size 16x16"):
        tfds_dataset(name="tiny", image_size=16, data_dir=str(tmp_path))


def test_taking_examples_keeps_images_and_labels_together(examples):
    some = examples.take(np.array([7, 3]))
    assert isinstance(some, ArrayExamples)
    np.testing.assert_array_equal(some.images[:, 0, 0, 0], some.labels)
