"""Claims about photographs stored sideways: both ways of reading see what a viewer shows."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from igpt_tf.data import FileExamples, image_folder, orientation
from igpt_tf.data import images as one_image
from igpt_tf.errors import InputError

TAG = 0x0112
SIDEWAYS = 6  # turn by 90 degrees clockwise to view


def jpeg(pixels, turn, byte_order="<", **options):
    """A JPEG file that says `turn`; without EXIF for None."""
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "a maker, so that the tag is not the first"
    exif[TAG] = turn or 1
    stored = io.BytesIO()
    options = {"quality": 95, "subsampling": 0, "exif": exif.tobytes(), **options}
    if turn is None:
        del options["exif"]
    Image.fromarray(pixels).save(stored, "JPEG", **options)
    return stored.getvalue()


@pytest.fixture
def photograph():
    """uint8[48,32,3], smooth and without symmetry."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype="uint8")
    return np.asarray(Image.fromarray(coarse).resize((32, 48), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def in_graph():
    return tf.function(
        orientation.read_tensor, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
    )


def loaded(paths, image_size):
    """uint8[N,H,W,3] as a training batch has them."""
    files = FileExamples(paths, None, image_size)
    count = len(files)
    return tf.function(files.load)(tf.range(count, dtype=tf.int64), tf.zeros([count, 2], tf.int32))


@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_read_and_turned_as_pillow_does(
    photograph, in_graph, turn, byte_order
):
    content = jpeg(photograph, turn, byte_order, icc_profile=bytes(100_000), comment=b"hello")
    assert orientation.read(content) == int(in_graph(content)) == turn
    with Image.open(io.BytesIO(content)) as image:
        pixels, expected = np.asarray(image), np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(orientation.turn(pixels, turn), expected)
    turned = orientation.turn_tensor(tf.constant(pixels), tf.constant(turn))
    np.testing.assert_array_equal(turned, expected)


def test_files_without_or_with_damaged_exif_are_upright_both_ways(photograph, in_graph):
    whole = jpeg(photograph, SIDEWAYS)
    place = whole.index(b"Exif\0\0")
    spoilt = [whole[:stop] for stop in range(0, place + 60, 3)]
    for at in range(place - 6, place + 50):
        spoilt += [whole[:at] + bytes([byte]) + whole[at + 1 :] for byte in (0, 9, 255)]
    read = [orientation.read(content) for content in spoilt]
    assert read == [int(in_graph(content)) for content in spoilt]
    assert set(read) == {1, SIDEWAYS}
    plain = jpeg(photograph, None, comment=b"Exif\0\0 is only a word here")
    for content in (b"", b"\xff\xd8", b"\xff\xd8\xff\xff\xff", plain):
        assert orientation.read(content) == int(in_graph(content)) == 1


def test_photographs_lie_alike_in_the_graph_and_in_memory(photograph, tmp_path):
    paths = [tmp_path / f"{turn}.jpg" for turn in range(1, 9)]
    for turn, path in enumerate(paths, start=1):
        path.write_bytes(jpeg(photograph, turn))
    memory = FileExamples(paths, None, (8, 8)).arrays()[0]
    assert len({image.tobytes() for image in memory}) == 8
    assert np.abs(loaded(paths, (8, 8)).numpy().astype(int) - memory).max() <= 1


def test_the_size_that_counts_is_the_upright_ones(photograph, tmp_path):
    path = tmp_path / "wide.jpg"
    path.write_bytes(jpeg(photograph, SIDEWAYS))  # stored 48 x 32, seen 32 x 48
    for image_size in ((32, 48), (20, 40)):
        assert one_image.decode(path.read_bytes(), "", image_size).shape == (*image_size, 3)
        assert loaded([path], image_size).shape == (1, *image_size, 3)
    with pytest.raises(InputError, match="32x48 pixels is smaller than image_size 48x32"):
        one_image.decode(path.read_bytes(), "", (48, 32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="smaller than image_size"):
        loaded([path], (48, 32))


def test_a_damaged_exif_leaves_a_readable_photograph_as_stored(photograph, tmp_path):
    content = jpeg(photograph, SIDEWAYS)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(content.replace(b"II*\0", b"??*\0"))
    train = image_folder(directory=str(tmp_path), image_size=(48, 32), heldout=0.5).train
    assert np.abs(train.images[0].astype(int) - photograph).max() < 12


def test_deep_grey_images_are_alike_in_the_graph_and_in_memory(tmp_path):
    levels = np.arange(0, 2**16, 64, dtype="uint16").reshape(32, 32)
    levels[0, :2] = 256, 65535
    Image.fromarray(levels).save(tmp_path / "deep.png")
    paths = [tmp_path / "deep.png"]
    memory = FileExamples(paths, None, (32, 32)).arrays()[0]
    np.testing.assert_array_equal(memory, loaded(paths, (32, 32)))
    np.testing.assert_array_equal(memory[0, 0, :2, 0], [1, 255])
