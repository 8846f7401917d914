import io
import os
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from igpt_tf.data import ArrayExamples, FileExamples, decoding, image_folder
from igpt_tf.data import images as one_image
from igpt_tf.errors import InputError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}


@pytest.fixture
def labelled(write_images, tmp_path):
    for part, count in (("train", 10), ("test", 2)):
        for name, colour in COLOURS.items():
            write_images(f"{part}/{name}", [np.full((12, 12, 3), colour, "uint8")] * count)
    return tmp_path


def test_class_folders_are_the_labels(labelled):
    source = image_folder(directory=str(labelled), image_size=8, heldout=0.1)
    assert source.class_names == ("green", "red")
    assert (len(source.train), len(source.valid), len(source.test)) == (18, 2, 4)
    for examples in (source.train, source.valid, source.test):
        assert isinstance(examples, ArrayExamples) and examples.image_size == (8, 8)
        names = [source.class_names[label] for label in examples.labels]
        np.testing.assert_array_equal(examples.images[:, 0, 0], [COLOURS[name] for name in names])


@pytest.mark.parametrize("name", ["valid", "val"])
def test_a_folders_own_valid_part_is_used(labelled, write_images, name):
    write_images(f"{name}/red", [np.zeros((12, 12, 3), "uint8")] * 3)
    source = image_folder(directory=str(labelled), image_size=8)
    assert (len(source.train), len(source.valid)) == (20, 3)
    assert set(source.valid.labels) == {1} and source.valid.images.max() == 0


@pytest.mark.parametrize("place", [".", "train"])
def test_a_flat_folder_has_no_labels(write_images, tmp_path, place):
    images = np.random.RandomState(0).randint(0, 256, (10, 8, 8, 3), dtype="uint8")
    write_images(place, images)
    (tmp_path / place / "notes.txt").write_text("no image")
    (tmp_path / place / ".hidden.png").write_text("no image")
    source = image_folder(directory=str(tmp_path), image_size=8, heldout=0.2)
    assert source.class_names is None and source.train.labels is None and source.test is None
    seen = np.concatenate([source.train.images, source.valid.images])
    assert {image.tobytes() for image in seen} == {image.tobytes() for image in images}


def test_jpeg_and_png_of_any_mode_become_rgb(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 100, "uint8"))
    deep = Image.fromarray(np.full((8, 8), 100 * 257, "uint16"))
    for name, image in {
        "a.png": grey,
        "b.JPG": grey,
        "c.jpeg": grey.convert("CMYK"),
        "d.png": grey.convert("RGBA"),
        "e.png": grey.convert("P"),
        "f.png": deep,
    }.items():
        image.save(tmp_path / name, format="PNG" if name.endswith("png") else "JPEG")
    source = image_folder(directory=str(tmp_path), image_size=8, heldout=0.2)
    for examples in (source.train, source.valid):
        assert np.abs(examples.images.astype(int) - 100).max() <= 2


def test_the_centre_of_a_wide_image_is_kept(write_images, tmp_path):
    image = np.zeros((16, 40, 3), "uint8")
    image[:, 12:28] = 200
    write_images(".", [image] * 2)
    source = image_folder(directory=str(tmp_path), image_size=8, heldout=0.5)
    assert (source.train.images == 200).all()


def test_shrinking_takes_the_mean_over_the_area(write_images, tmp_path):
    image = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype="uint8")
    write_images(".", [image] * 2)
    source = image_folder(directory=str(tmp_path), image_size=16, heldout=0.5)
    means = image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(source.train.images[0] - means).max() <= 0.5


def test_a_photograph_stored_sideways_is_turned_upright():
    pixels = np.zeros((16, 16, 3), "uint8")
    pixels[:8] = 255  # white above black once upright
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    stored = io.BytesIO()
    Image.fromarray(np.rot90(pixels)).save(stored, "JPEG", exif=exif)
    upright = one_image.decode(stored.getvalue(), "photo.jpg", (2, 2))
    assert upright[0].min() > 250 and upright[1].max() < 5


def test_large_jpegs_decoded_small_look_like_the_whole_ones():
    smooth = np.random.RandomState(0).randint(0, 256, (10, 10, 3), dtype="uint8")
    image = Image.fromarray(smooth).resize((640, 640), Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=95)
    fast = one_image.decode(stored.getvalue(), "photo.jpg", (32, 32)).astype(float)
    whole = np.asarray(image, float).reshape(32, 20, 32, 20, 3).mean(axis=(1, 3))
    assert 10 * np.log10(255**2 / np.mean((fast - whole) ** 2)) > 38  # dB


def test_the_random_crop_follows_the_papers_recipe():
    uniform = np.random.RandomState(0).uniform(size=(2000, 3))
    draws = decoding.random_draws(tf.constant(uniform)).numpy()
    boxes = np.array([decoding._box([4000, 5120], draw, (32, 32)) for draw in draws[:300]])
    top, left, height, width = boxes.T
    np.testing.assert_array_equal(height, width)
    np.testing.assert_allclose(height, draws[:300, 0] * 4000, atol=0.5)
    shorter_sides = 224 / draws[:, 0]  # what the shorter side was resized to
    np.testing.assert_allclose(shorter_sides, np.rint(shorter_sides))
    assert shorter_sides.min().round() == 256 and shorter_sides.max().round() == 384
    assert top.min() >= 0 and (top + height).max() <= 4000 and np.ptp(top) > 1500
    assert left.min() >= 0 and (left + width).max() <= 5120 and np.ptp(left) > 2500


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_files_decode_alike_in_the_graph_and_into_memory(write_images, ending):
    smooth = np.random.RandomState(0).randint(0, 256, (3, 9, 12, 3), dtype="uint8")
    images = [Image.fromarray(one).resize((320, 240), Image.Resampling.BICUBIC) for one in smooth]
    paths = write_images("photos", [np.asarray(image) for image in images], ending)
    files = FileExamples(paths, None, (16, 16))
    zeros = tf.zeros([3, 2], tf.int32)
    in_graph = tf.function(files.load)(tf.range(3, dtype=tf.int64), zeros).numpy()
    assert np.abs(in_graph.astype(int) - files.arrays()[0]).max() <= 2


def test_random_crops_are_for_training_only(labelled):
    source = image_folder(directory=str(labelled), image_size=8, crop="random")
    assert isinstance(source.train, FileExamples) and source.train.crop == "random"
    assert isinstance(source.valid, ArrayExamples) and isinstance(source.test, ArrayExamples)
    images, labels = source.train.arrays()
    assert images.shape == (19, 8, 8, 3) and len(labels) == 19


def test_images_beyond_the_memory_bound_stay_in_their_files(labelled, monkeypatch):
    memory = image_folder(directory=str(labelled), image_size=8)
    monkeypatch.setattr(
        sys.modules["igpt_tf.data.image_folder"], "_MEMORY_BOUND", 24 * 8 * 8 * 3 - 1
    )
    files = image_folder(directory=str(labelled), image_size=8)
    assert isinstance(files.train, FileExamples)
    np.testing.assert_array_equal(files.train.arrays()[0], memory.train.images)


@pytest.mark.parametrize("num_bytes", [0, 20, 60])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_corrupt_file_is_named(write_images, tmp_path, num_bytes, ending):
    noise = np.random.RandomState(0).randint(0, 256, (6, 12, 12, 3), dtype="uint8")
    path = write_images(".", noise, ending)[3]
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(InputError, match=f"corrupt.*003.{ending}") as caught:
        image_folder(directory=str(tmp_path), image_size=8, heldout=0.5)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_named_among_large_ones(write_images, tmp_path):
    noise = np.random.RandomState(0).randint(0, 256, (4, 160, 160, 3), dtype="uint8")
    path = write_images(".", noise)[2]
    path.write_bytes(path.read_bytes()[:-2000])
    assert path.stat().st_size > 32 * 2**10  # such files are decoded in threads
    with pytest.raises(InputError, match=r"corrupt.*002\.png"):
        image_folder(directory=str(tmp_path), image_size=8, heldout=0.5)


def test_an_image_smaller_than_wanted_is_named(labelled, write_images):
    write_images("train/red", [np.zeros((12, 7, 3), "uint8")])
    with pytest.raises(InputError, match="12x7 pixels is smaller than image_size 8x8.*000.png"):
        image_folder(directory=str(labelled), image_size=8)


def test_an_image_that_goes_away_is_named(write_images, examples):
    paths = write_images("photos", examples.images[:3])
    files = FileExamples(paths, None, (8, 8))
    paths[1].unlink()
    with pytest.raises(InputError, match=r"cannot be read.*001\.png"):
        files.arrays()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: os.mkdir(root / "train/blue"), "holds no images.*blue"),
        (lambda root: (root / "train/x.png").write_text("x"), "both images and folders"),
        (lambda root: os.rename(root / "test/red", root / "test/blue"), "lacks.*blue"),
        (lambda root: os.mkdir(root / "valid"), "holds no images.*valid"),
        (lambda root: os.rename(root / "train", root / "x"), "holds no images"),
    ],
)
def test_a_folder_in_disorder_is_refused(labelled, spoil, message):
    spoil(labelled)
    with pytest.raises(InputError, match=message):
        image_folder(directory=str(labelled), image_size=8)


def test_an_empty_a_missing_folder_and_an_unknown_crop_are_refused(tmp_path, labelled):
    (tmp_path / "empty").mkdir()
    for directory, arguments, message in (
        (tmp_path / "empty", {}, "holds no images"),
        (tmp_path / "nowhere", {}, "no such folder"),
        (labelled, {"crop": "centre"}, "crop='centre'"),
    ):
        with pytest.raises(InputError, match=message):
            image_folder(directory=str(directory), image_size=8, **arguments)
