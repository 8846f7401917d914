import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.data import (
    ArrayExamples,
    FileExamples,
    batches,
    evaluation_batches,
    flip,
    iterate,
    shift,
)
from igpt_tf.data.mixture import MixedExamples
from igpt_tf.errors import InputError

AUGMENTATION = (shift(), flip())


def elements(examples, num_steps=6, first_step=0, **arguments):
    arguments = {"batch_size": 8, "seed": 3, "augmentation": AUGMENTATION, **arguments}
    dataset = batches(examples, first_step=first_step, num_steps=num_steps, **arguments)
    return list(dataset.as_numpy_iterator())


def assert_same(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_is_a_function_of_seed_and_step(examples):
    assert_same(elements(examples), elements(examples))
    one, other = elements(examples, num_steps=1), elements(examples, num_steps=1, seed=4)
    assert (one[0]["images"] != other[0]["images"]).any()


def test_a_resumed_pipeline_continues_exactly(examples):
    straight = elements(examples, num_steps=20)
    assert_same(straight[13:], elements(examples, first_step=13, num_steps=7))


def test_every_image_is_seen_once_per_epoch(examples):
    labels = np.concatenate([e["labels"] for e in elements(examples, num_steps=25)])
    epochs = labels.reshape(4, 50)  # 25 batches of 8 are 4 epochs of 50, across batch borders
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_neighbours_of_one_epoch_are_not_neighbours_in_the_next():
    size, epochs = 64, 200
    examples = ArrayExamples(np.zeros((size, 1, 1, 3), "uint8"), np.arange(size))
    seen = elements(examples, batch_size=size, num_steps=epochs, augmentation=())
    places = np.argsort([e["labels"] for e in seen], axis=1)
    # The mean place of an image over epochs, and the distance of two neighbours, are as of chance.
    assert np.abs(places.mean(axis=0) - (size - 1) / 2).max() < 4.5 * 18.5 / np.sqrt(epochs)
    distance = np.abs(np.diff(places, axis=1)).mean()
    assert abs(distance - (size + 1) / 3) < 1


def test_without_shuffling_images_are_in_the_stored_order(examples):
    labels = np.concatenate([e["labels"] for e in elements(examples, shuffle=False)])
    np.testing.assert_array_equal(labels, np.arange(48))


def test_two_shards_together_are_the_batch_of_one(examples):
    def random_inputs(step):
        return {"masked": tf.random.stateless_uniform([8, 5], [3, step]) < 0.5}

    whole = elements(examples, random_inputs=random_inputs)
    halves = [
        elements(examples, random_inputs=random_inputs, shard=(index, 2)) for index in range(2)
    ]
    joined = [
        {name: np.concatenate([left[name], right[name]]) for name in left}
        for left, right in zip(*halves, strict=True)
    ]
    assert_same(whole, joined)
    assert whole[0]["masked"].shape == (8, 5)


def test_a_batch_must_divide_among_the_shards(examples):
    with pytest.raises(InputError, match="batch_size=8, num_shards=3"):
        elements(examples, shard=(0, 3))


def test_an_image_is_augmented_anew_in_every_epoch():
    examples = ArrayExamples(np.arange(192, dtype="uint8").reshape(1, 8, 8, 3))
    seen = {e["images"].tobytes() for e in elements(examples, batch_size=1, num_steps=40)}
    assert len(seen) > 10  # of 18


def test_tokens_are_the_tables_rows_in_raster_order(examples):
    table = np.random.RandomState(0).randint(0, 512, 2**24).astype("int16")
    (tokens,) = elements(examples, num_steps=1, table=table)
    (images,) = elements(examples, num_steps=1)
    red, green, blue = np.moveaxis(images["images"].astype(int), -1, 0)
    expected = table[blue << 16 | green << 8 | red].reshape(8, 64)
    np.testing.assert_array_equal(tokens["tokens"], expected)
    assert tokens["tokens"].dtype == np.int32 and "images" not in tokens


def test_shapes_are_static(examples):
    dataset = batches(examples, batch_size=8, seed=0, first_step=0, augmentation=AUGMENTATION)
    assert dataset.element_spec["images"].shape == (8, 8, 8, 3)
    table = np.zeros(2**24, "int16")
    spec = evaluation_batches(examples, batch_size=8, table=table).element_spec
    assert spec["tokens"].shape == (8, 64) and spec["weight"].shape == (8,)


def test_evaluation_weighs_every_image_once_and_the_padding_nothing(examples):
    seen = list(evaluation_batches(examples, batch_size=16).as_numpy_iterator())
    labels = np.concatenate([e["labels"] for e in seen])
    weights = np.concatenate([e["weight"] for e in seen])
    assert len(labels) == 64
    np.testing.assert_array_equal(weights, np.arange(64) < 50)
    np.testing.assert_array_equal(labels[:50], np.arange(50))
    np.testing.assert_array_equal(seen[0]["images"], examples.images[:16])


def test_images_come_out_as_they_were_stored(examples):
    before = examples.images.copy()
    (element,) = elements(examples, num_steps=1, augmentation=(), shuffle=False)
    np.testing.assert_array_equal(element["images"], before[:8])
    np.testing.assert_array_equal(examples.images, before)


def test_a_random_crop_depends_on_the_image_seed_alone(write_images):
    gradient = np.arange(3 * 60 * 80).reshape(60, 80, 3) % 251
    paths = write_images("photos", [gradient.astype("uint8")] * 6)
    files = FileExamples(paths, None, (16, 16), crop="random")
    whole = elements(files, batch_size=4, augmentation=())
    assert_same(whole, elements(files, batch_size=4, augmentation=()))
    half = elements(files, batch_size=4, augmentation=(), shard=(1, 2))
    assert_same([{"images": e["images"][2:]} for e in whole], half)
    crops = np.concatenate([e["images"] for e in whole])
    assert len({crop.tobytes() for crop in crops}) > 12  # of 24; two may coincide


def test_evaluations_see_the_centre_of_what_training_crops_at_random(write_images):
    gradient = np.arange(3 * 60 * 80).reshape(60, 80, 3) % 251
    paths = write_images("photos", [gradient.astype("uint8")] * 3)
    files = FileExamples(paths, [0, 1, 2], (16, 16), crop="random")
    mixed = MixedExamples([files, files], (1, 1), labelled=True)
    for examples in (files, mixed):
        expected = FileExamples(paths, [0, 1, 2], (16, 16), crop="centre")
        [centre] = evaluation_batches(expected, batch_size=3).as_numpy_iterator()
        [seen] = evaluation_batches(examples.take(np.arange(3)), batch_size=3).as_numpy_iterator()
        assert_same([seen], [centre])
    assert files.crop == mixed.parts[0].crop == "random"  # training goes on as before


def test_a_file_that_breaks_while_training_is_named(write_images, examples):
    paths = write_images("photos", examples.images[:8])
    paths[5].write_bytes(paths[5].read_bytes()[:60])
    files = FileExamples(paths, None, (8, 8), crop="random")
    dataset = batches(files, batch_size=4, seed=0, first_step=0)
    with pytest.raises(InputError, match=r"damaged.*005\.png") as caught:
        list(iterate(dataset, files))
    assert "\n" not in str(caught.value)


def test_an_error_that_is_not_of_a_file_is_raised_unchanged(examples):
    broken = tf.data.Dataset.range(3).map(lambda step: 6 // (step - 1))
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(iterate(broken, examples))
