import os
import pickle
import tarfile

import numpy as np
import pytest

from igpt_tf.data import cifar10, cifar100
from igpt_tf.errors import InputError


def test_cifar10_is_read_from_the_official_files(cifar_folder):
    source = cifar10(directory=str(cifar_folder))
    assert (len(source.train), len(source.valid), len(source.test)) == (18, 2, 4)
    assert source.image_size == (32, 32) and len(source.class_names) == 10
    batch = pickle.loads((cifar_folder / "test_batch").read_bytes())
    red_of_row_one = batch[b"data"][2, 32:64]
    np.testing.assert_array_equal(source.test.images[2, 1, :, 0], red_of_row_one)
    np.testing.assert_array_equal(source.test.labels, [0, 1, 2, 9])


def test_the_archive_holds_the_same_images_as_the_folder(cifar_folder):
    archive = cifar_folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar_folder, arcname="cifar-10-batches-py")
    folder = cifar10(directory=str(cifar_folder))
    cifar_folder.rename(cifar_folder.parent / "elsewhere")
    for directory in (archive, cifar_folder):  # the second is found beside the missing folder
        packed = cifar10(directory=str(directory))
        np.testing.assert_array_equal(packed.train.images, folder.train.images)
        np.testing.assert_array_equal(packed.test.labels, folder.test.labels)


def test_smaller_images_are_area_means(cifar_folder):
    full, small = (cifar10(directory=str(cifar_folder), image_size=size) for size in (32, 16))
    means = full.test.images.reshape(4, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    assert np.abs(small.test.images - means).max() <= 0.5


def test_cifar100_has_the_fine_labels(tmp_path):
    planes = np.zeros((10, 3072), "uint8")
    contents = {b"data": planes, b"fine_labels": [99] * 10, b"coarse_labels": [0] * 10}
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps(contents, protocol=2))
    meta = {b"fine_label_names": [b"name"] * 100, b"coarse_label_names": [b"name"] * 20}
    (tmp_path / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    source = cifar100(directory=str(tmp_path))
    assert len(source.class_names) == 100 and set(source.test.labels) == {99}


class _Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_tries_to_run_code_is_refused_without_running_it(
    cifar_folder, tmp_path, protocol
):
    trace = tmp_path / "it_ran"
    for attack in (_Runs(os.mkdir, str(trace)), _Runs(eval, f"__import__('os').mkdir({trace!r})")):
        contents = {b"data": attack, b"labels": []}
        (cifar_folder / "data_batch_3").write_bytes(pickle.dumps(contents, protocol=protocol))
        with pytest.raises(InputError, match="was not run.*data_batch_3") as caught:
            cifar10(directory=str(cifar_folder))
        assert not trace.exists() and "\n" not in str(caught.value)


def test_a_pickle_cannot_reach_through_a_dotted_name(cifar_folder):
    # Protocol 4 splits names at dots: numpy -> "ndarray.__class__" would be reached.
    payload = b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    (cifar_folder / "data_batch_1").write_bytes(payload)
    with pytest.raises(InputError, match="ndarray.__class__"):
        cifar10(directory=str(cifar_folder))


def test_files_pickled_by_python_3_are_read_as_well(cifar_folder):
    before = cifar10(directory=str(cifar_folder)).train.images
    for path in cifar_folder.iterdir():
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol=3))
    np.testing.assert_array_equal(cifar10(directory=str(cifar_folder)).train.images, before)


@pytest.mark.parametrize("size", [0, 10, 6000])
def test_a_cut_file_is_named(cifar_folder, size):
    path = cifar_folder / "data_batch_4"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="data_batch_4"):
        cifar10(directory=str(cifar_folder))


def test_a_missing_file_a_missing_folder_and_a_cut_archive_are_named(cifar_folder):
    (cifar_folder / "test_batch").unlink()
    with pytest.raises(InputError, match="test_batch"):
        cifar10(directory=str(cifar_folder))
    with pytest.raises(InputError, match="cs.toronto.edu"):
        cifar10(directory=str(cifar_folder / "nowhere" / "at all"))
    archive = cifar_folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar_folder / "data_batch_1")
    with pytest.raises(InputError, match="lacks data_batch_2"):
        cifar10(directory=str(archive))
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        cifar10(directory=str(archive))


@pytest.mark.parametrize(
    "contents",
    [
        {b"data": np.zeros((2, 3000), "uint8"), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), "float32"), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), "uint8"), b"labels": [0]},
        {b"data": np.zeros((2, 3072), "uint8"), b"labels": [0, 10]},
        {b"data": np.zeros((2, 3072), "uint8"), b"labels": ["a", "b"]},
        {b"labels": [0, 1]},
        [1, 2],
    ],
)
def test_contents_of_another_shape_are_refused(cifar_folder, contents):
    (cifar_folder / "test_batch").write_bytes(pickle.dumps(contents, protocol=2))
    with pytest.raises(InputError):
        cifar10(directory=str(cifar_folder))
