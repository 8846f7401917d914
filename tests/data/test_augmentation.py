import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.data import batches, digits, flip, reflect_pad_crop, shift
from igpt_tf.data.augmentation import check
from igpt_tf.data.stateless_random import fold_in, row_integers
from igpt_tf.errors import InputError


def seeds(count):
    return tf.stack([tf.zeros(count, tf.int32), tf.range(count)], axis=1)


IMAGE = np.arange(1, 1 + 6 * 5 * 3, dtype="uint8").reshape(6, 5, 3)
IMAGES = tf.constant(np.repeat(IMAGE[None], 400, axis=0))


def windows(padded):
    """Every 6 x 5 window of a padded image."""
    tops, lefts = padded.shape[0] - 5, padded.shape[1] - 4
    return {
        padded[top : top + 6, left : left + 5].tobytes()
        for top in range(tops)
        for left in range(lefts)
    }


def test_shift_keeps_the_image_size_and_moves_at_most_one_pixel():
    shifted = shift(max_pixels=1)(IMAGES, seeds(400)).numpy()
    assert shifted.shape == (400, 6, 5, 3)
    expected = windows(np.pad(IMAGE, [(1, 1), (1, 1), (0, 0)]))
    assert len(expected) == 9 and {image.tobytes() for image in shifted} == expected


def test_pad_crop_reflects():
    cropped = reflect_pad_crop(pixels=2)(IMAGES, seeds(400)).numpy()
    expected = windows(np.pad(IMAGE, [(2, 2), (2, 2), (0, 0)], mode="reflect"))
    assert len(expected) == 25 and {image.tobytes() for image in cropped} == expected


def test_flip_mirrors_about_half_of_the_images():
    flipped = flip()(IMAGES, seeds(400)).numpy()
    mirrored = (flipped == IMAGE[:, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == IMAGE).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


def test_an_image_is_augmented_the_same_in_any_batch():
    whole = shift()(IMAGES, seeds(400)).numpy()
    alone = shift()(IMAGES[:1], seeds(400)[123:124]).numpy()
    np.testing.assert_array_equal(whole[123:124], alone)


@pytest.mark.parametrize("pixels", [-1, 0.5])
def test_a_shift_is_by_whole_pixels(pixels):
    with pytest.raises(InputError, match="whole pixels"):
        shift(max_pixels=pixels)


def test_a_shift_wider_than_the_image_is_refused():
    with pytest.raises(InputError, match=r"image_size=\(6, 5\)"):
        reflect_pad_crop(pixels=5)(IMAGES, seeds(400))


def test_row_integers_are_uniform_and_their_streams_independent():
    rows = seeds(30_000)
    first, second = (row_integers(rows, stream, -1, 1).numpy() for stream in (0, 1))
    counts = np.histogram2d(first, second, bins=3)[0]
    assert ((counts - 30_000 / 9) ** 2 / (30_000 / 9)).sum() < 26  # chi squared, p = 0.001
    following = np.histogram2d(first[1:], first[:-1], bins=3)[0]
    assert ((following - 30_000 / 9) ** 2 / (30_000 / 9)).sum() < 26


def test_folded_seeds_never_repeat():
    folded = tf.concat([fold_in(seeds(5_000), salt) for salt in range(3)], axis=0).numpy()
    assert len({tuple(seed) for seed in folded}) == 15_000


def test_an_error_of_an_augmentation_is_raised_unchanged_in_the_pipeline():
    too_wide = [shift(max_pixels=100)]
    with pytest.raises(InputError, match="fewer pixels"):
        batches(digits().train, batch_size=4, seed=0, first_step=0, augmentation=too_wide)
    with pytest.raises(InputError, match="fewer pixels"):
        check(too_wide, (8, 8))


@pytest.mark.parametrize("wrong", [flip(), ["flip"], [flip], None])
def test_only_a_list_of_augmentations_is_accepted(wrong):
    with pytest.raises(InputError, match="augmentation must be"):
        check(wrong, (8, 8))
    check([flip(), shift(), reflect_pad_crop()], (8, 8))
    check([], (8, 8))
