"""Damaged files through every reader: each is read, or refused with an InputError of one line.

`make test` reads a few of each kind, `make fuzz` hundreds. The damage is seeded: a failure repeats.
"""

import glob
import gzip
import io
import os
import pickle
import struct
import zlib

import gin
import numpy as np
import pytest
from PIL import Image

from igpt_tf import config, files
from igpt_tf.convert import huggingface_export, huggingface_import
from igpt_tf.data.cifar import cifar10
from igpt_tf.data.decoding import decode_bytes
from igpt_tf.data.examples import ArrayExamples
from igpt_tf.data.idx import mnist
from igpt_tf.data.npz import npz
from igpt_tf.data.sources import Source
from igpt_tf.data.tfrecords import tfrecords, write_shards
from igpt_tf.errors import InputError
from igpt_tf.palette import Palette
from igpt_tf.savedmodel import metadata
from tests.convert.random_models import random_model, random_palette

NUM_SHORT, NUM_LONG = 6, 60
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype="uint8")
LABELS = np.arange(20) % 10
METADATA = {
    "format": 1,
    "model": {"image_size": [8, 8], "vocabulary_size": 17, "num_layers": 2},
    "data": {"name": "digits", "arguments": {"heldout": 0.2}},
    "step": 3,
    "nats_per_token": {"valid": 1.5},
    "versions": {"tensorflow": "2.21.0"},
}


def damaged(content: bytes, seed: int) -> bytes:
    """A copy of a file with one kind of damage, chosen by the seed."""
    rng = np.random.default_rng(seed)
    data = bytearray(content)
    start = int(rng.integers(0, max(1, len(data))))
    size = int(rng.integers(1, max(2, len(data) // 4)))
    kind = seed % 8
    if kind == 0:  # cut short, as by an interrupted download
        return bytes(data[:start])
    if kind == 1:  # single bits
        for position in rng.integers(0, len(data), 8):
            data[position] ^= 1 << int(rng.integers(0, 8))
    elif kind == 2:  # a block of zeros, as after a power failure
        data[start : start + size] = bytes(len(data[start : start + size]))
    elif kind == 3:  # random bytes
        data[start : start + size] = rng.bytes(len(data[start : start + size]))
    elif kind == 4:  # a part is missing
        del data[start : start + size]
    elif kind == 5:  # a part occurs twice
        data[start:start] = data[start : start + size]
    elif kind == 6:  # huge or negative numbers in the header
        position = int(rng.integers(0, min(len(data), 64)))
        data[position : position + 4] = struct.pack(">i", int(rng.choice([-1, 2**31 - 1, 0, 1])))
    else:  # digits and punctuation of text formats
        for position in rng.integers(0, len(data), 4):
            data[position] = int(rng.choice(list(b'0129-.eE"{}[],:\n\\')))
    return bytes(data)


def encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(file, kind, **options)
    return file.getvalue()


def write(folder, name, content: bytes) -> str:
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(content)
    return path


# Each kind: make(folder) writes good files and returns those to damage; read(folder) reads them.


def image_kind(name, content):
    def make(folder):
        return [write(folder, name, content)]

    def read(folder):
        with open(os.path.join(folder, name), "rb") as file:
            decode_bytes(file.read(), (8, 8), name=name)

    return make, read


def make_npz(folder):
    np.savez(os.path.join(folder, "images.npz"), images=IMAGES, labels=LABELS)
    return [os.path.join(folder, "images.npz")]


def read_npz(folder):
    npz(path=os.path.join(folder, "images.npz"))


def make_idx(folder):
    grey = IMAGES[..., 0].tobytes()
    paths = []
    for part in ("train", "t10k"):
        header = struct.pack(">IIII", 0x803, 20, 32, 32)
        paths.append(write(folder, f"{part}-images-idx3-ubyte", header + grey))
        content = gzip.compress(struct.pack(">II", 0x801, 20) + LABELS.astype("uint8").tobytes())
        paths.append(write(folder, f"{part}-labels-idx1-ubyte.gz", content))
    return paths


def make_cifar(folder):
    content = {b"data": IMAGES.reshape(20, 3072), b"labels": LABELS.tolist()}
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    paths = [write(folder, name, pickle.dumps(content, 2)) for name in names]
    meta = {b"label_names": [f"class{i}".encode() for i in range(10)]}
    return [*paths, write(folder, "batches.meta", pickle.dumps(meta, 2))]


def make_tfrecords(folder):
    examples = ArrayExamples(IMAGES, LABELS)
    class_names = tuple(f"class{i}" for i in range(10))
    source = Source(examples, examples, None, class_names)
    write_shards(source, folder, images_per_shard=20)
    return sorted(glob.glob(os.path.join(folder, "*")))  # without the lock


def make_palette(folder):
    random_palette().save(os.path.join(folder, "palette.npy"))
    return [os.path.join(folder, "palette.npy")]


def make_huggingface(folder):
    huggingface_export.write_huggingface(random_model(), random_palette(), folder)
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]


def read_huggingface(folder):
    opened = huggingface_import.HuggingFaceFolder(folder)
    opened.palette()
    opened.load()


def make_gin(folder):
    text = """# A comment
fuzzed.number = 3
fuzzed.items = [1, (2.5, 'text'), {'a': None}]  # a comment
inner/fuzzed.other = @fuzzed()
MACRO = "text"
fuzzed.text = %MACRO
fuzzed:
    number = 4
"""
    return [write(folder, "run.gin", text.encode())]


@gin.configurable
def fuzzed(number: int = 0, items: list | None = None, other=None, text: str = ""):
    return number


def read_gin(folder):
    try:
        config.parse([os.path.join(folder, "run.gin")], [])
        fuzzed()
        config.refuse_unread_bindings()
    finally:
        gin.clear_config()


def make_metadata(folder):
    files.write_json(os.path.join(folder, metadata.METADATA), METADATA)
    return [os.path.join(folder, metadata.METADATA)]


KINDS = {
    "png": image_kind("a.png", encoded("PNG")),
    "jpeg": image_kind("a.jpg", encoded("JPEG", exif=b"Exif\0\0II*\0" + bytes(20))),
    "gif": image_kind("a.gif", encoded("GIF")),
    "bmp": image_kind("a.bmp", encoded("BMP")),
    "webp": image_kind("a.webp", encoded("WEBP", lossless=True)),
    "npz": (make_npz, read_npz),
    "idx": (make_idx, lambda folder: mnist(directory=folder)),
    "pickle": (make_cifar, lambda folder: cifar10(directory=folder)),
    "tfrecords": (
        make_tfrecords,
        lambda folder: tfrecords(directory=folder, verify=True),
    ),
    "palette": (make_palette, lambda folder: Palette.load(os.path.join(folder, "palette.npy"))),
    "huggingface": (make_huggingface, read_huggingface),
    "gin": (make_gin, read_gin),
    "metadata": (make_metadata, metadata.read_metadata),
}


def read_damaged(kind: str, folder: str, seeds: range) -> int:
    """Reads one damaged copy per seed; returns how many were refused."""
    make, read = KINDS[kind]
    refused = 0
    paths = make(folder)
    for seed in seeds:
        path = paths[zlib.crc32(str(seed).encode()) % len(paths)]
        with open(path, "rb") as file:
            original = file.read()
        write("", path, damaged(original, seed))
        try:
            read(folder)
        except InputError as error:
            refused += 1
            message = str(error).split("\n  In call to configurable")[0]
            assert "\n" not in message and len(message) < 2000, (kind, seed)
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}, {path}: {error!r}") from error
        finally:
            write("", path, original)
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files_are_read_or_refused(kind, tmp_path):
    assert read_damaged(kind, str(tmp_path), range(NUM_SHORT))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_read_or_refused(kind, tmp_path):
    assert read_damaged(kind, str(tmp_path), range(NUM_SHORT, NUM_LONG))
