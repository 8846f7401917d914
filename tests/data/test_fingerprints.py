"""Fingerprints: equal for the same images, in this process or another; otherwise different."""

import os

import numpy as np
import pytest

from igpt_tf.data import ArrayExamples, FileExamples, npz, tfrecords
from igpt_tf.data.mixture import MixedExamples
from igpt_tf.data.tfrecords import write_shards as write_tfrecords
from igpt_tf.errors import InputError
from tests.data.conftest import random_images


def all_differ(*examples):
    return len({one.fingerprint() for one in examples}) == len(examples)


def test_arrays_are_identified_by_their_pixels(examples):
    changed = examples.images.copy()
    changed[7, 3, 3] ^= 1
    reshaped = examples.images.reshape(50, 4, 16, 3)
    before = examples.fingerprint()
    examples.load([0], None)  # after which the pixels lie in TensorFlow's memory
    assert before == examples.fingerprint() == ArrayExamples(examples.images).fingerprint()
    assert all_differ(examples, ArrayExamples(changed), ArrayExamples(reshaped))


def test_files_are_identified_by_path_content_and_how_they_are_shown(write_images):
    paths = write_images("photos", random_images(3))
    files = FileExamples(paths, [0, 1, 2], (4, 4))
    assert files.fingerprint() == FileExamples(paths, None, (4, 4)).fingerprint()
    random = FileExamples(paths, None, (4, 4), crop="random")
    assert random.centre_cropped().fingerprint() == files.fingerprint()
    assert all_differ(files, random, FileExamples(paths, None, (4, 2)), files.take([0, 1]))
    before = files.fingerprint()
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    assert files.fingerprint() != before


def test_a_copy_of_files_with_other_dates_has_their_fingerprint(write_images, tmp_path):
    paths = write_images("photos", random_images(3))
    before = FileExamples(paths, None, (4, 4)).fingerprint()
    (tmp_path / "photos").rename(tmp_path / "moved")
    copies = [tmp_path / "moved" / path.name for path in paths]
    os.utime(copies[1], (0, 0))
    assert FileExamples(copies, None, (4, 4)).fingerprint() == before


@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_a_change_of_a_large_file_is_noticed(tmp_path, place):
    path = tmp_path / "large.bmp"
    content = bytearray(100_000)
    path.write_bytes(content)
    files = FileExamples([path], None, (4, 4))
    before = files.fingerprint()
    content[place] = 1
    path.write_bytes(content)
    assert files.fingerprint() != before


def test_a_missing_file_is_named(write_images):
    paths = write_images("photos", random_images(3))
    files = FileExamples(paths, None, (4, 4))
    paths[1].unlink()
    with pytest.raises(InputError, match=r"cannot be read.*001\.png"):
        files.fingerprint()


@pytest.fixture
def write_shards(tmp_path):
    """Writes shards of random images of `seed`; returns them opened."""

    def write(name, seed):
        np.savez(tmp_path / f"{seed}.npz", images=random_images(20, seed=seed))
        source = npz(path=str(tmp_path / f"{seed}.npz"))
        write_tfrecords(source, str(tmp_path / name), images_per_shard=8)
        return tfrecords(directory=str(tmp_path / name))

    return write


def test_records_are_identified_by_the_content_of_their_shards(write_shards):
    here, there, other = write_shards("here", 0), write_shards("there", 0), write_shards("other", 1)
    assert here.train.fingerprint() == there.train.fingerprint()
    assert all_differ(
        here.train, here.valid, other.train, here.train.take([0, 1]), here.train.take([1, 0])
    )


def test_mixtures_are_identified_by_their_parts_and_shares(examples, write_shards):
    records = write_shards("shards", 0).train

    def mixed(parts, shares):
        return MixedExamples(parts, shares, labelled=False)

    both = mixed([examples, records], (1, 2))
    assert both.fingerprint() == mixed([examples, records], (2, 4)).fingerprint()
    assert both.centre_cropped().fingerprint() == both.fingerprint()
    assert all_differ(
        both, mixed([examples, records], (1, 3)), mixed([records, examples], (1, 2)), examples
    )
