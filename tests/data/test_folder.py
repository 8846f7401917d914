"""Image folders: parts and classes by their folders, every file left out is reported."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from igpt_tf.data import FileExamples, image_folder
from igpt_tf.errors import InputError
from igpt_tf.files import list_images

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}


def read_all(source):
    """uint8[N,H,W,3] of all parts."""
    parts = (source.train, source.valid, source.test)
    return np.concatenate([part.arrays()[0] for part in parts if part is not None])


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
        assert examples.image_size == (8, 8)
        images, labels = examples.arrays()
        names = [source.class_names[label] for label in labels]
        np.testing.assert_array_equal(images[:, 0, 0], [COLOURS[name] for name in names])


@pytest.mark.parametrize("name", ["valid", "val"])
def test_a_folders_own_valid_part_is_used(labelled, write_images, name):
    write_images(f"{name}/red", [np.zeros((12, 12, 3), "uint8")] * 3)
    source = image_folder(directory=str(labelled), image_size=8)
    assert (len(source.train), len(source.valid)) == (20, 3)
    assert set(source.valid.labels) == {1} and source.valid.arrays()[0].max() == 0


@pytest.mark.parametrize("place", [".", "train"])
def test_a_flat_folder_has_no_labels(write_images, tmp_path, place):
    images = np.random.RandomState(0).randint(0, 256, (10, 8, 8, 3), dtype="uint8")
    write_images(place, images)
    (tmp_path / place / "notes.txt").write_text("no image")
    (tmp_path / place / ".hidden.png").write_text("no image")
    source = image_folder(directory=str(tmp_path), image_size=8, heldout=0.2)
    assert source.class_names is None and source.train.labels is None and source.test is None
    seen = np.concatenate([source.train.arrays()[0], source.valid.arrays()[0]])
    assert {image.tobytes() for image in seen} == {image.tobytes() for image in images}


def test_random_crops_are_for_training_only(labelled):
    source = image_folder(directory=str(labelled), image_size=8, crop="random")
    assert not source.train.is_fixed and source.valid.is_fixed and source.test.is_fixed
    images, labels = source.train.arrays()
    assert images.shape == (19, 8, 8, 3) and len(labels) == 19


def test_images_beyond_the_memory_bound_stay_in_their_files(labelled, monkeypatch):
    memory = image_folder(directory=str(labelled), image_size=8)
    monkeypatch.setattr(
        sys.modules["igpt_tf.data.image_folder"], "_MEMORY_BOUND", 24 * 8 * 8 * 3 - 1
    )
    files = image_folder(directory=str(labelled), image_size=8)
    assert not files.train._in_memory and memory.train._in_memory
    np.testing.assert_array_equal(files.train.arrays()[0], memory.train.arrays()[0])


@pytest.mark.parametrize("num_bytes", [0, 20, 60])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_corrupt_file_is_named(write_images, tmp_path, num_bytes, ending):
    noise = np.random.RandomState(0).randint(0, 256, (6, 12, 12, 3), dtype="uint8")
    path = write_images(".", noise, ending)[3]
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(InputError, match=f"damaged.*003.{ending}|is empty.*003.{ending}") as caught:
        read_all(image_folder(directory=str(tmp_path), image_size=8, heldout=0.5))
    assert "\n" not in str(caught.value)


def test_an_image_smaller_than_wanted_is_named(labelled, write_images):
    write_images("train/red", [np.zeros((12, 7, 3), "uint8")])
    with pytest.raises(InputError, match="12x7 pixels is smaller than image_size 8x8.*000.png"):
        read_all(image_folder(directory=str(labelled), image_size=8))


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
        (lambda root: os.rename(root / "train", root / "x"), "ambiguous whether test.*beside x"),
    ],
)
def test_a_folder_in_disorder_is_refused(labelled, spoil, message):
    spoil(labelled)
    with pytest.raises(InputError, match=message):
        image_folder(directory=str(labelled), image_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "middle"}, "crop='middle'"),
        ({"small_images": "shrink"}, "small_images='shrink'"),
        ({"background": (0, 0, 256)}, "three numbers"),
        ({"image_size": 0}, "positive integer"),
    ],
)
def test_unknown_options_are_refused(labelled, arguments, message):
    with pytest.raises(InputError, match=message):
        image_folder(**{"directory": str(labelled), "image_size": 8, **arguments})


def test_an_empty_and_a_missing_folder_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for directory, message in (("empty", "holds no images"), ("nowhere", "no such folder")):
        with pytest.raises(InputError, match=message):
            image_folder(directory=str(tmp_path / directory), image_size=8)


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("valid", ["valid", "val", "Validation", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_the_parts_have_these_names_in_any_case(write_images, tmp_path, train, valid, test):
    for folder, count in ((train, 5), (valid, 3), (test, 2)):
        write_images(folder, np.zeros((count, 8, 8, 3), "uint8"))
    source = image_folder(directory=str(tmp_path), image_size=8)
    assert [len(part) for part in (source.train, source.valid, source.test)] == [5, 3, 2]
    assert source.class_names is None


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "bus", "car"], "ambiguous whether train.*beside bus, car"),
        (["cat", "dog", "test"], "ambiguous whether test.*beside cat, dog"),
        (["train", "val", "valid"], "two folders of the valid split.*val, valid"),
        (["Train", "training"], "two folders of the train split"),
        (["valid", "test"], "none called train"),
    ],
)
def test_folders_that_are_parts_or_classes_are_refused(write_images, tmp_path, folders, message):
    for folder in folders:
        write_images(folder, np.zeros((2, 8, 8, 3), "uint8"))
    with pytest.raises(InputError, match=message):
        image_folder(directory=str(tmp_path), image_size=8)


def test_images_in_nested_class_folders_belong_to_the_class(write_images, tmp_path):
    for folder in ("cat", "dog", "dog/puppies", "dog/puppies/small"):
        write_images(folder, np.zeros((3, 8, 8, 3), "uint8"))
    source = image_folder(directory=str(tmp_path), image_size=8, heldout=0.2)
    assert source.class_names == ("cat", "dog")
    labels = np.concatenate([source.train.labels, source.valid.labels])
    np.testing.assert_array_equal(np.bincount(labels), [3, 9])


def test_files_left_out_are_printed_with_their_reasons(write_images, tmp_path, capsys):
    images = np.zeros((4, 8, 8, 3), "uint8")
    for ending in ("png", "jpg", "webp", "bmp", "gif"):
        write_images("train", images, ending)
    write_images(".", images[:1])
    for name in ("._000.png", "notes.txt", "page.html", "photo.heic"):
        (tmp_path / "train" / name).write_text("x")
    (tmp_path / "train" / "broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "train" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "train" / "pipe.png")
    source = image_folder(directory=str(tmp_path), image_size=8, heldout=0.2)
    assert len(source.train) + len(source.valid) == 20
    printed = capsys.readouterr().out
    assert "21 image files, 20 used (train 16, valid 4)" in printed
    for line in (
        "left out: 1 hidden (such as train/._000.png)",
        "left out: 3 with an ending other than",
        "left out: 2 not a regular file, or a broken link",
        "left out: 1 a link to a folder that was listed already (such as train/loop)",
        "left out: 1 beside the folders of the splits (such as 000.png)",
    ):
        assert line in printed


@pytest.fixture
def small_and_large(write_images, tmp_path):
    write_images("large", np.full((6, 9, 9, 3), 90, "uint8"))
    write_images("small", np.full((3, 9, 5, 3), 90, "uint8"))
    return str(tmp_path)


def test_small_images_are_refused_skipped_or_enlarged(small_and_large, write_images, capsys):
    arguments = {"directory": small_and_large, "image_size": 8, "heldout": 0.3}
    with pytest.raises(InputError, match=r"9x5 pixels is smaller.*small/00\d\.png"):
        read_all(image_folder(**arguments))
    with pytest.raises(InputError, match=r"holds no images.*small"):
        image_folder(**arguments, small_images="skip")
    write_images("small", np.full((1, 9, 9, 3), 90, "uint8"))
    capsys.readouterr()
    skipped = image_folder(**arguments, small_images="skip")
    assert len(skipped.train) + len(skipped.valid) == 7
    assert "left out: 2 smaller than image_size (such as small/001.png)" in capsys.readouterr().out
    enlarged = image_folder(**arguments, small_images="enlarge")
    assert "2 images are smaller than image_size and are enlarged" in capsys.readouterr().out
    assert (enlarged.train.arrays()[0] == 90).all() and len(enlarged.train) == 6
    assert len(read_all(enlarged)) == 9


def test_names_that_are_not_utf_8_are_read(tmp_path, capsys):
    folder = os.fsencode(tmp_path / "caf") + b"\xe9"
    os.mkdir(folder)
    for number in range(4):
        with open(folder + b"/\xff%d.png" % number, "wb") as file:
            Image.new("RGB", (8, 8)).save(file, "PNG")
    source = image_folder(directory=os.fsdecode(folder), image_size=8, heldout=0.3)
    assert read_all(source).shape == (4, 8, 8, 3)
    assert "4 used" in capsys.readouterr().out


def test_class_names_that_are_not_utf_8_can_be_stored(tmp_path):
    for name in (b"caf\xe9", "thé".encode()):
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        for number in range(2):
            with open(folder + b"/%d.png" % number, "wb") as file:
                Image.new("RGB", (8, 8)).save(file, "PNG")
    source = image_folder(directory=str(tmp_path), image_size=8, heldout=0.3)
    assert source.class_names == (r"caf\xe9", "thé")
    assert np.bincount(np.concatenate([source.train.labels, source.valid.labels])).tolist() == [
        2,
        2,
    ]


def test_a_folder_that_may_not_be_read_is_named(labelled, monkeypatch):
    scan = os.scandir

    def forbidden(path):
        if str(path).endswith("train/red"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(InputError, match="Permission denied.*train/red"):
        image_folder(directory=str(labelled), image_size=8)


def test_files_are_listed_alike_for_folders_and_by_name(write_images, tmp_path):
    paths = write_images("photos", np.zeros((3, 8, 8, 3), "uint8"), "PNG".lower())
    (tmp_path / "photos" / "Z.JPEG").write_bytes(paths[0].read_bytes())
    (tmp_path / "photos" / "._000.png").write_text("x")
    expected = [str(tmp_path / "photos" / "Z.JPEG")]
    listed = list_images([str(tmp_path / "photos"), str(paths[1])])
    assert listed == sorted([*map(str, paths), *expected]) + [str(paths[1])]
    for path, message in (
        (tmp_path / "nowhere.png", "No such file"),
        (tmp_path / "e", "no images"),
    ):
        (tmp_path / "e").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            list_images([str(path)])
