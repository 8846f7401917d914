"""The palette, on real photographs."""

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.palette import Palette


@pytest.fixture(scope="module")
def photographs():
    from sklearn.datasets import load_sample_images

    return np.stack([image[:256, :384] for image in load_sample_images().images])


@pytest.fixture(scope="module")
def palette(photographs):
    return Palette.fit(photographs, 64, seed=1)


def random_colours(number=4096):
    return np.random.default_rng(0).integers(0, 256, (number // 64, 8, 8, 3), dtype="uint8")


def test_a_token_is_the_nearest_centroid_in_exact_arithmetic(palette):
    images = random_colours()
    pixels = images.reshape(-1, 1, 3) / 127.5 - 1
    distances = ((pixels - palette.centroids.astype("float64")) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(palette.encode(images).reshape(-1), distances.argmin(axis=1))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_host_tokens_equal_device_tokens(palette, jit_compile):
    images = random_colours()
    on_device = tf.function(palette.encode_tensor, jit_compile=jit_compile)(images)
    np.testing.assert_array_equal(palette.encode(images), on_device)


def test_every_colour_of_the_table_equals_the_device_token(palette):
    index = np.arange(2**24, dtype="int32")[::257]
    images = np.stack([index & 255, index >> 8 & 255, index >> 16], -1).astype("uint8")
    tokens = palette.encode_tensor(images[None, None])
    np.testing.assert_array_equal(palette.table[index], np.asarray(tokens)[0])


def test_ties_go_to_the_lowest_index():
    twice = Palette(np.array([[-1, -1, -1], [1, 1, 1], [1, 1, 1]], "float32"))
    white = np.full((1, 1, 1, 3), 255, "uint8")
    assert twice.encode(white)[0, 0] == 1
    assert np.asarray(twice.encode_tensor(white))[0, 0] == 1


def test_decoding_tokens_and_encoding_them_again_changes_nothing(palette):
    tokens = palette.encode(random_colours())
    images = palette.decode(tokens, (8, 8))
    np.testing.assert_array_equal(palette.encode(images), tokens)
    np.testing.assert_array_equal(palette.decode_tensor(tokens, (8, 8)), images)


def test_tokens_are_in_raster_order():
    image = np.zeros((1, 2, 3, 3), "uint8")
    image[0, 0, 2] = 255
    assert Palette.grey(2).encode(image).tolist() == [[0, 0, 1, 0, 0, 0]]


def test_a_fitted_palette_uses_all_colours_and_beats_an_evenly_spaced_one(palette, photographs):
    tokens = palette.encode(photographs)
    assert len(np.unique(tokens)) == 64
    steps = np.linspace(-1, 1, 4, dtype="float32")
    cube = Palette(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3))
    assert error(palette, photographs) < 0.5 * error(cube, photographs)


def error(palette, images):
    shown = palette.decode(palette.encode(images), images.shape[1:3])
    return np.mean((images.astype("float64") - shown) ** 2)


def test_more_colours_than_the_images_hold_are_refused():
    with pytest.raises(InputError, match="only 1 different colours"):
        Palette.fit(np.zeros((1, 4, 4, 3), "uint8"), 2)


def test_the_file_keeps_the_palette_and_its_fingerprint(palette, tmp_path):
    palette.save(tmp_path / "palette.npy")
    loaded = Palette.load(str(tmp_path / "palette.npy"))
    np.testing.assert_array_equal(loaded.centroids, palette.centroids)
    assert loaded.fingerprint == palette.fingerprint != Palette.grey(64).fingerprint


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), "float32"),
        np.full((4, 3), 2.0, "float32"),
        np.full((4, 3), np.nan, "float32"),
        np.zeros((4, 3), "uint8"),
        np.array([{"code": "runs"}], dtype=object),
    ],
)
def test_a_file_that_is_not_a_palette_is_refused_and_named(array, tmp_path):
    path = str(tmp_path / "no_palette.npy")
    np.save(path, array, allow_pickle=True)
    with pytest.raises(InputError, match="no_palette.npy"):
        Palette.load(path)


def test_images_of_another_type_are_refused(palette):
    with pytest.raises(InputError, match="float32"):
        palette.encode(np.zeros((1, 2, 2, 3), "float32"))


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (np.full((1, 4), -1), "min=-1, max=-1"),
        (np.full((1, 4), 5), "tokens are 0 to 4"),
        (np.zeros((1, 3), int), r"shape=\(1, 3\)"),
        (np.zeros((1, 4)), "dtype=float64"),
    ],
)
def test_tokens_that_are_no_images_of_the_palette_are_refused(tokens, named):
    with pytest.raises(InputError, match=named):
        Palette.grey(5).decode(tokens, (2, 2))
