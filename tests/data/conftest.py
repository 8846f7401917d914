"""Small data sets in the official formats."""

import gzip
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from igpt_tf.data.examples import ArrayExamples


def random_images(count, height=8, width=8, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (count, height, width, 3), dtype="uint8")


@pytest.fixture
def examples():
    """50 images; the first pixel of each is its number, as its label is."""
    images = random_images(50)
    images[:, 0, 0, 0] = np.arange(50)
    return ArrayExamples(images, np.arange(50))


@pytest.fixture
def write_images(tmp_path):
    """Writes images as `folder/000.png` (or another ending) below tmp_path; returns the paths."""

    def write(folder, images, ending="png"):
        directory = tmp_path / folder
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / f"{number:03}.{ending}" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path, quality=100, subsampling=0)
        return paths

    return write


@pytest.fixture
def write_idx(tmp_path):
    """Writes the four files of an MNIST-like set; returns the folder and the arrays."""

    def write(folder, gzipped=False, count=20):
        directory = tmp_path / folder
        directory.mkdir()
        open_file, end = (gzip.open, ".gz") if gzipped else (open, "")
        arrays = {}
        for part, size in (("train", count), ("t10k", 4)):
            images = random_images(size, 28, 28)[..., 0]
            labels = (np.arange(size) % 10).astype("uint8")
            arrays[part] = (images, labels)
            with open_file(directory / f"{part}-images-idx3-ubyte{end}", "wb") as file:
                file.write(struct.pack(">IIII", 0x803, size, 28, 28) + images.tobytes())
            with open_file(directory / f"{part}-labels-idx1-ubyte{end}", "wb") as file:
                file.write(struct.pack(">II", 0x801, size) + labels.tobytes())
        return directory, arrays

    return write


@pytest.fixture
def cifar_folder(tmp_path):
    """A CIFAR-10 folder of 5 x 4 training and 4 test images, laid out as the official one."""
    directory = tmp_path / "cifar-10-batches-py"
    directory.mkdir()
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        planes = random_images(4, 32, 32, seed).transpose(0, 3, 1, 2).reshape(4, 3072)
        contents = {b"data": planes, b"labels": [0, 1, 2, 9], b"batch_label": name.encode()}
        (directory / name).write_bytes(pickle.dumps(contents, protocol=2))
    meta = {b"label_names": [f"class {number}".encode() for number in range(10)]}
    (directory / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return directory
