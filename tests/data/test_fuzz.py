"""Damaged data files: each one is read, or refused in one line; nothing else happens."""

import os
import pickle

import numpy as np
import pytest

from igpt_tf.data import cifar10, mnist, npz, tfrecords
from igpt_tf.data.decoding import decode_bytes
from igpt_tf.data.tfrecords import write_shards
from igpt_tf.errors import InputError
from igpt_tf.palette import Palette
from tests.data.conftest import random_images
from tests.data.test_decoding import variants

SHORT, LONG = 60, 500  # damaged files


def damage(content, rng):
    """`content` with some bytes changed, removed, repeated or cut off."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not content:
            break
        # Headers are short and matter most.
        at = int(rng.integers(0, len(content) if rng.random() < 0.5 else min(len(content), 80)))
        match rng.integers(0, 5):
            case 0:
                content[at] = rng.integers(0, 256)
            case 1:
                content[at : at + 4] = bytes(rng.choice([0, 255, 127, 128], 4).tolist())
            case 2:
                del content[at : at + int(rng.integers(1, 20))]
            case 3:
                content[at:at] = content[at : at + int(rng.integers(1, 20))]
            case _:
                del content[at:]
    return bytes(content)


def read_or_refuse(read):
    try:
        read()
    except InputError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.fixture(scope="module")
def images():
    # An animated WebP is refused by a flag; TensorFlow 2.21 writes beyond its memory without it.
    return [content for content, _, _ in variants().values()]


@pytest.fixture
def sources(tmp_path, cifar_folder, write_idx):
    """[(file, function that reads it)]."""
    np.savez(tmp_path / "a.npz", images=random_images(12), labels=np.arange(12) % 3)
    folder, _ = write_idx("mnist")
    shards = str(tmp_path / "shards")
    write_shards(npz(path=str(tmp_path / "a.npz"), heldout=0.3), shards, images_per_shard=8)
    Palette.grey(16).save(str(tmp_path / "palette.npy"))

    def read_shards():
        for part in (tfrecords(directory=shards).train, tfrecords(directory=shards).valid):
            part.arrays()

    read_npz = lambda: npz(path=str(tmp_path / "a.npz"), heldout=0.3)  # noqa: E731
    return [
        (tmp_path / "a.npz", read_npz),
        *((folder / name, lambda: mnist(directory=str(folder))) for name in os.listdir(folder)),
        (cifar_folder / "data_batch_2", lambda: cifar10(directory=str(cifar_folder))),
        (cifar_folder / "batches.meta", lambda: cifar10(directory=str(cifar_folder))),
        *((tmp_path / "shards" / name, read_shards) for name in os.listdir(shards)),
        (tmp_path / "palette.npy", lambda: Palette.load(str(tmp_path / "palette.npy"))),
    ]


@pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.fuzz)])
def test_damaged_images_are_read_or_refused(images, count):
    rng = np.random.default_rng(count)
    results = []
    for number in range(count):
        content = damage(images[number % len(images)], rng)
        results.append(read_or_refuse(lambda content=content: decode_bytes(content, (9, 6))))
    assert 0 < sum(results) < count


@pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.fuzz)])
def test_damaged_data_files_are_read_or_refused(sources, count):
    rng = np.random.default_rng(count)
    results = []
    for number in range(count):
        path, read = sources[number % len(sources)]
        whole = path.read_bytes()
        path.write_bytes(damage(whole, rng))
        results.append(read_or_refuse(read))
        path.write_bytes(whole)
    assert sum(results) < count


class Attack:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array([[0] * 3072] * 4, dtype=object), "not one of integers"),
        (np.zeros((4, 3072), "float32"), "not one of integers"),
        (np.zeros((4, 100), "uint8"), "not \\[N, 3072\\]"),
        ([1, 2], "not \\[N, 3072\\]"),
        (Attack(), "was not run"),
    ],
)
def test_cifar_arrays_of_other_kinds_are_refused(cifar_folder, data, message):
    contents = {b"data": data, b"labels": [0, 1, 2, 9]}
    (cifar_folder / "data_batch_1").write_bytes(pickle.dumps(contents, protocol=2))
    with pytest.raises(InputError, match=message):
        cifar10(directory=str(cifar_folder))


def test_a_cifar_array_that_claims_objects_is_not_built(cifar_folder):
    """NumPy would take the bytes for pointers, and crash."""
    array = pickle.dumps(np.zeros((4, 3072), "uint8"), protocol=2)
    forged = array.replace(b"u1", b"O8")
    assert forged != array
    content = pickle.dumps({b"data": 0, b"labels": [0, 1, 2, 9]}, protocol=2)
    zero = content.index(b"K\x00")
    body = content[:zero] + forged[2:-1] + content[zero + 2 :]  # without PROTO and STOP
    (cifar_folder / "data_batch_1").write_bytes(body)
    with pytest.raises(InputError):
        cifar10(directory=str(cifar_folder))


@pytest.mark.parametrize("label", [2**40, 2**31, -1])
def test_labels_that_an_int32_cannot_hold_are_refused(tmp_path, label):
    labels = np.array([0, 1, label, 0])
    np.savez(tmp_path / "a.npz", images=random_images(4), labels=labels)
    with pytest.raises(InputError, match="labels must be class numbers from 0"):
        npz(path=str(tmp_path / "a.npz"))


def test_labels_in_two_rows_are_refused(tmp_path):
    labels = np.zeros((2, 20), "int64")
    np.savez(tmp_path / "a.npz", images=random_images(40), labels=labels)
    with pytest.raises(InputError, match="one per image"):
        npz(path=str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"", "it is empty"),
    ],
)
def test_a_file_that_is_not_npz_is_refused_with_its_kind(tmp_path, content, message):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        npz(path=str(tmp_path / "a.npz"))
    assert "pickle" not in str(caught.value)


def test_unnamed_arrays_of_an_npz_file_get_their_fix(tmp_path):
    np.savez(tmp_path / "a.npz", random_images(4))
    with pytest.raises(InputError, match=r"numpy\.savez\(path, images=images.*arr_0"):
        npz(path=str(tmp_path / "a.npz"))
