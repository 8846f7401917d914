"""Shards: lossless, random access, restartable, and any damage is named."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.data import batches, digits, image_folder, iterate, mixture, npz, tfrecords
from igpt_tf.data import source_from_description as rebuild
from igpt_tf.data.tfrecords import INDEX, write_shards
from igpt_tf.errors import InputError


@pytest.fixture
def source(tmp_path):
    """100 random colour images with labels, in .npz form: 80 train, 20 held out, 10 test."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{part}_{kind}": values
        for part, count in (("train", 100), ("test", 10))
        for kind, values in (
            ("images", rng.integers(0, 256, (count, 6, 5, 3), dtype="uint8")),
            ("labels", rng.integers(0, 4, count)),
        )
    }
    np.savez(tmp_path / "all.npz", **arrays)
    return npz(path=str(tmp_path / "all.npz"), heldout=0.2)


@pytest.fixture
def folder(source, tmp_path):
    directory = str(tmp_path / "shards")
    write_shards(source, directory, images_per_shard=32)
    return directory


def test_images_come_back_bit_for_bit_with_their_split_and_labels(source, folder):
    again = tfrecords(directory=folder)
    assert again.class_names == source.class_names and again.image_size == (6, 5)
    for part in ("train", "valid", "test"):
        images, labels = getattr(again, part).arrays()
        np.testing.assert_array_equal(images, getattr(source, part).images)
        np.testing.assert_array_equal(labels, getattr(source, part).labels)
    files = sorted(name for name in os.listdir(folder) if name.endswith(".tfrecord"))
    assert files == [
        "test-00000-of-00001.tfrecord",
        *(f"train-0000{i}-of-00003.tfrecord" for i in range(3)),
        "valid-00000-of-00001.tfrecord",
    ]


def test_the_batches_of_shards_are_those_of_their_source(source, folder):
    def seen(examples, first_step=0, num_steps=25):
        arguments = {"batch_size": 8, "seed": 1, "first_step": first_step, "num_steps": num_steps}
        return list(batches(examples, **arguments).as_numpy_iterator())

    train = tfrecords(directory=folder).train
    whole, resumed = seen(train), seen(train, first_step=20, num_steps=5)
    for one, other in zip(whole + resumed, seen(source.train) + whole[20:], strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])
        np.testing.assert_array_equal(one["labels"], other["labels"])


def test_a_part_of_the_records_is_the_part_of_the_images(source, folder):
    places = np.array([79, 3, 31, 32, 3])
    part = tfrecords(directory=folder).train.take(places)
    np.testing.assert_array_equal(part.arrays()[0], source.train.images[places])
    np.testing.assert_array_equal(part.labels, source.train.labels[places])


def test_other_programs_read_the_shards_as_plain_examples(source, folder):
    path = os.path.join(folder, "valid-00000-of-00001.tfrecord")
    records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    assert len(records) == 20
    feature = tf.train.Example.FromString(records[7]).features.feature
    image = tf.io.decode_png(feature["image"].bytes_list.value[0])
    np.testing.assert_array_equal(image, source.valid.images[7])
    assert feature["label"].int64_list.value[0] == source.valid.labels[7]


def test_images_without_labels_stay_without(write_images, tmp_path):
    write_images("web", np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype="uint8"))
    web = image_folder(directory=str(tmp_path / "web"), image_size=(4, 4))
    write_shards(web, str(tmp_path / "shards"), images_per_shard=8)
    again = tfrecords(directory=str(tmp_path / "shards"))
    assert again.train.labels is again.class_names is None
    np.testing.assert_array_equal(again.train.arrays()[0], web.train.arrays()[0])


def test_shards_are_rebuilt_from_their_description_and_mix(source, folder):
    description = json.loads(json.dumps(tfrecords(directory=folder).description))
    assert rebuild(description).description == description
    both = mixture(sources=[source, description], weights=[1, 3]).train
    images = next(iter(batches(both, batch_size=8, seed=0, first_step=0)))["images"].numpy()
    known = {image.tobytes() for image in source.train.images}
    assert {image.tobytes() for image in images} <= known


class Killed(Exception):
    pass


def test_an_interrupted_run_goes_on_and_ends_as_if_left_alone(source, folder, tmp_path):
    def two_only(plan):
        yield from plan[:2]
        raise Killed

    other = tmp_path / "again"
    with pytest.raises(Killed):
        write_shards(source, str(other), images_per_shard=32, watch=two_only)
    with pytest.raises(InputError, match="unfinished"):
        tfrecords(directory=str(other))
    first = other / "train-00000-of-00003.tfrecord"
    written = first.stat().st_mtime_ns
    (other / "train-00001-of-00003.npy").unlink()  # killed between a shard and its records
    write_shards(source, str(other), images_per_shard=32)
    assert first.stat().st_mtime_ns == written
    for name in os.listdir(folder):
        assert (other / name).read_bytes() == open(os.path.join(folder, name), "rb").read()
    assert sorted(os.listdir(other)) == sorted(os.listdir(folder))


def test_two_processes_do_not_write_the_same_shards(source, tmp_path):
    def again(plan):
        yield plan[0]
        with pytest.raises(InputError, match="another process is writing these shards"):
            write_shards(source, str(tmp_path), images_per_shard=32)
        yield from plan[1:]

    write_shards(source, str(tmp_path), images_per_shard=32, watch=again)
    assert len(tfrecords(directory=str(tmp_path)).train) == len(source.train)


def test_finished_shards_are_left_alone_and_never_mixed_with_others(source, folder):
    before = os.stat(os.path.join(folder, INDEX)).st_mtime_ns
    write_shards(source, folder, images_per_shard=32)
    assert os.stat(os.path.join(folder, INDEX)).st_mtime_ns == before
    for other, size in ((digits(), 32), (source, 16)):
        with pytest.raises(InputError, match="shards of another source"):
            write_shards(other, folder, images_per_shard=size)


def test_a_random_crop_is_not_frozen_into_shards(write_images, tmp_path):
    write_images("photos", np.zeros((4, 9, 9, 3), "uint8"))
    photos = image_folder(
        directory=str(tmp_path / "photos"), image_size=(4, 4), heldout=0.3, crop="random"
    )
    for mixed in (photos, mixture(sources=[photos, photos])):
        with pytest.raises(InputError, match="crop='centre'"):
            write_shards(mixed, str(tmp_path / "shards"), images_per_shard=8)
    assert not (tmp_path / "shards").exists()


def shard_path(folder, ending="tfrecord"):
    return os.path.join(folder, f"train-00001-of-00003.{ending}")


def change_a_byte(path, place=300):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("ending", ["tfrecord", "npy"])
def test_a_missing_or_cut_file_is_named_at_the_start(folder, ending):
    path = shard_path(folder, ending)
    os.truncate(path, os.path.getsize(path) - 9)
    with pytest.raises(InputError, match=f"damaged.*train-00001-of-00003.{ending}") as caught:
        tfrecords(directory=folder)
    assert "\n" not in str(caught.value)
    os.remove(path)
    with pytest.raises(InputError, match="No such file"):
        tfrecords(directory=folder)


def test_a_changed_byte_is_found_when_it_is_read_and_at_the_start_on_request(folder):
    train = tfrecords(directory=folder).train
    change_a_byte(shard_path(folder))
    with pytest.raises(InputError, match="checksum differs.*train-00001"):
        list(iterate(batches(train, batch_size=8, seed=0, first_step=0), train))
    with pytest.raises(InputError, match="checksum differs.*train-00001"):
        train.arrays()
    assert tfrecords(directory=folder).train  # sizes are right
    with pytest.raises(InputError, match="checksum differs.*train-00001"):
        tfrecords(directory=folder, verify=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.clear(),
        lambda index: index.update(version=2),
        lambda index: index["parts"].update(valid=[]),
        lambda index: index["parts"]["train"][0].update(images=31),
        lambda index: index["parts"]["train"][0].pop("bytes"),
    ],
)
def test_a_wrong_index_is_refused(folder, change):
    path = os.path.join(folder, INDEX)
    index = json.loads(open(path).read())
    change(index)
    open(path, "w").write(json.dumps(index))
    with pytest.raises(InputError) as caught:
        tfrecords(directory=folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_shards_and_a_broken_index_are_refused(tmp_path):
    with pytest.raises(InputError, match="tools.make_tfrecords"):
        tfrecords(directory=str(tmp_path))
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        tfrecords(directory=str(tmp_path))


def test_a_folder_that_cannot_be_written_is_one_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_shards(source, str(tmp_path / "file" / "shards"), images_per_shard=8)
    assert "\n" not in str(caught.value)
