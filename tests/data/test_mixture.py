"""Mixtures: exact shares, whole epochs, no history."""

import json

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.data import ArrayExamples, FileExamples, batches, iterate, mixture, npz
from igpt_tf.data import source_from_description as rebuild
from igpt_tf.data.mixture import MixedExamples, assign_positions
from igpt_tf.errors import InputError


def numbered(count, first):
    """Images whose first two bytes are their number."""
    images = np.zeros((count, 4, 4, 3), "uint8")
    numbers = np.arange(first, first + count)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers // 256, numbers % 256
    return ArrayExamples(images, np.arange(count) % 3)


def mixed(shares=(2, 5, 1), labelled=False):
    return MixedExamples([numbered(7, 0), numbered(30, 100), numbered(4, 200)], shares, labelled)


def shown(examples, num_steps, first_step=0, **arguments):
    """The numbers of the images shown, int[num_steps, B]."""
    arguments = {"batch_size": 8, "seed": 3, **arguments}
    dataset = batches(examples, first_step=first_step, num_steps=num_steps, **arguments)
    images = np.stack([e["images"] for e in dataset.as_numpy_iterator()]).astype(int)
    return images[..., 0, 0, 0] * 256 + images[..., 0, 0, 1]


@pytest.mark.parametrize("shares", [(1,), (1, 1), (2, 5, 1), (1, 99), (1279, 100_000_000)])
def test_every_interval_of_positions_has_the_share_of_each_part(shares):
    components, _ = assign_positions(tf.range(5000, dtype=tf.int64), shares)
    for number, share in enumerate(shares):
        assigned = np.concatenate([[0], np.cumsum(components.numpy() == number)])
        deviation = assigned - np.arange(5001) * share / sum(shares)
        assert np.ptp(deviation) < len(shares)


def test_the_numbers_within_a_part_have_no_gaps_and_need_no_history():
    start = 10**10  # far into a run
    positions = tf.range(start, start + 4000, dtype=tf.int64)
    components, places = (x.numpy() for x in assign_positions(positions, (2, 5, 1)))
    for number in range(3):
        own = places[components == number]
        np.testing.assert_array_equal(own, np.arange(own[0], own[0] + len(own)))
    assert (assign_positions(tf.constant([0], tf.int64), (2, 5, 1))[1] == 0).numpy().all()


def test_no_image_repeats_before_all_images_of_its_part_were_used():
    seen = shown(mixed(), num_steps=60).ravel()
    for first, count in ((0, 7), (100, 30), (200, 4)):
        own = seen[(seen >= first) & (seen < first + count)]
        epochs = own[: len(own) // count * count].reshape(-1, count)
        assert len(epochs) >= 8
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(first, first + count))
        assert len({tuple(epoch) for epoch in epochs}) > 5  # of 4 images there are 24 orders


def test_without_shuffling_each_part_is_in_the_stored_order():
    seen = shown(mixed(), num_steps=3, shuffle=False).ravel()
    np.testing.assert_array_equal(seen[seen >= 200], [200, 201, 202])
    np.testing.assert_array_equal(seen[seen < 100], np.arange(6))


def test_a_resumed_mixture_and_two_shards_show_what_one_run_does():
    whole = shown(mixed(), num_steps=6)
    np.testing.assert_array_equal(whole[4:], shown(mixed(), num_steps=2, first_step=4))
    halves = [shown(mixed(), num_steps=6, shard=(index, 2)) for index in range(2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))
    assert (whole != shown(mixed(), num_steps=6, seed=4)).any()


def test_labels_go_with_their_images():
    dataset = batches(mixed(labelled=True), batch_size=8, seed=0, first_step=0, num_steps=10)
    for element in dataset.as_numpy_iterator():
        numbers = element["images"][:, 0, 0].astype(int) @ [256, 1, 0]
        np.testing.assert_array_equal(element["labels"], numbers % 100 % 3)


def test_a_part_may_be_in_files_and_a_damaged_file_is_named(write_images):
    paths = write_images("web", numbered(6, 50).images)
    files = FileExamples(paths, None, (4, 4))
    both = MixedExamples([numbered(7, 0), files], (1, 1), labelled=False)
    seen = shown(both, num_steps=6)
    assert set(seen.ravel()) == set(range(7)) | set(range(50, 56))
    np.testing.assert_array_equal(both.arrays()[0][7:], numbered(6, 50).images)
    paths[3].write_bytes(paths[3].read_bytes()[:40])
    with pytest.raises(InputError, match=r"003\.png"):
        list(iterate(batches(both, batch_size=4, seed=0, first_step=0), both))


def test_a_part_of_a_mixture_is_a_mixture_in_the_same_proportions():
    part = mixed(labelled=True).take(np.array([0, 6, 7, 36, 37]))
    assert part.shares == (2, 5, 1) and len(part) == 5
    numbers = part.arrays()[0][:, 0, 0].astype(int) @ [256, 1, 0]
    np.testing.assert_array_equal(numbers, [0, 6, 100, 129, 200])
    np.testing.assert_array_equal(part.labels, [0, 0, 0, 2, 0])


@pytest.fixture
def archives(tmp_path):
    """Descriptions of three .npz files: two of the same classes, one without labels."""
    descriptions = []
    for number, labels in enumerate(([0, 1] * 10, [1, 0] * 20, None)):
        path = tmp_path / f"{number}.npz"
        count = 20 * (number + 1)
        arrays = {"images": numbered(count, 100 * number).images}
        np.savez(path, **arrays, **({} if labels is None else {"labels": np.array(labels)}))
        descriptions.append(npz(path=str(path)).description)
    return descriptions


def test_a_mixture_is_rebuilt_from_its_description(archives):
    source = mixture(sources=[rebuild(each) for each in archives[:2]], weights=(0.3, 0.7))
    description = json.loads(json.dumps(source.description))
    again = rebuild(description)
    assert again.description == description and again.train.shares == (3, 7)
    np.testing.assert_array_equal(shown(source.train, 3), shown(again.train, 3))


def test_the_heldout_part_is_the_first_sources(archives):
    source, first = mixture(sources=archives[:2]), rebuild(archives[0])
    np.testing.assert_array_equal(source.valid.images, first.valid.images)
    np.testing.assert_array_equal(source.valid.labels, first.valid.labels)
    assert source.train.shares == (1, 2)  # 18 and 36 images: each equally often


def test_labels_stay_only_where_all_sources_have_the_same_classes(archives):
    assert mixture(sources=archives[:2]).class_names == ("0", "1")
    source = mixture(sources=archives)
    assert source.class_names is source.train.labels is source.valid.labels is None
    assert "labels" not in next(iter(batches(source.train, batch_size=4, seed=0, first_step=0)))


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -2), (1, "a"), (1, 1e-9), (1, float("nan"))])
def test_weights_that_are_no_shares_are_refused(archives, weights):
    with pytest.raises(InputError, match="mixture.weights"):
        mixture(sources=archives[:2], weights=weights)


def test_sources_of_two_sizes_and_mixtures_of_mixtures_are_refused(archives):
    with pytest.raises(InputError, match=r"\(4, 4\), \(8, 8\)"):
        mixture(sources=[*archives, {"name": "digits"}])
    with pytest.raises(InputError, match="contains a mixture"):
        mixture(sources=[mixture(sources=archives)])
