import gzip

import numpy as np
import pytest

from igpt_tf.data import fashion_mnist, mnist
from igpt_tf.errors import InputError


def test_gzipped_files_hold_the_same_images_as_plain_ones(write_idx):
    plain, arrays = write_idx("plain")
    packed, _ = write_idx("packed", gzipped=True)
    sources = [mnist(directory=str(directory)) for directory in (plain, packed)]
    for source in sources:
        assert (len(source.train), len(source.valid), len(source.test)) == (18, 2, 4)
        images, labels = arrays["t10k"]
        np.testing.assert_array_equal(source.test.images, np.repeat(images[..., None], 3, axis=-1))
        np.testing.assert_array_equal(source.test.labels, labels)
    np.testing.assert_array_equal(sources[0].train.images, sources[1].train.images)


def test_fashion_mnist_names_its_clothes(write_idx):
    source = fashion_mnist(directory=str(write_idx("fashion")[0]), image_size=14)
    assert source.class_names[9] == "Ankle boot" and source.image_size == (14, 14)


def test_a_missing_file_is_named(write_idx):
    directory, _ = write_idx("mnist")
    (directory / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte.gz"):
        mnist(directory=str(directory))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "holds only"),
        (lambda content: content + b"x", "holds more"),
        (lambda content: content[:10], "not an idx file"),
        (lambda content: b"", "not an idx file"),
        (lambda content: b"\0\0\x0d\3" + content[4:], "00000d03"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "holds only"),
        (lambda content: gzip.compress(content)[:-9], "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(write_idx, damage, message):
    directory, _ = write_idx("mnist")
    path = directory / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"{message}.*train-images-idx3-ubyte"):
        mnist(directory=str(directory))


def test_labels_beyond_the_classes_are_refused(write_idx):
    directory, _ = write_idx("mnist")
    path = directory / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(InputError, match="from 0 to 9.*highest=10"):
        mnist(directory=str(directory))


def test_images_and_labels_of_different_numbers_are_refused(write_idx):
    directory, _ = write_idx("mnist")
    labels = directory / "t10k-labels-idx1-ubyte"
    (directory / "train-labels-idx1-ubyte").write_bytes(labels.read_bytes())
    with pytest.raises(InputError, match="one per image.*images=20"):
        mnist(directory=str(directory))
