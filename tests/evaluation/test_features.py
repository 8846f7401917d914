"""Features: computed once for a model and its images, complete, independent of the batch size."""

import contextlib
import dataclasses
import io
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from igpt_tf.data import ArrayExamples, FileExamples, digits
from igpt_tf.evaluation import features
from igpt_tf.evaluation.features import cached_features
from igpt_tf.image_grid import write_png
from igpt_tf.savedmodel.load import SavedModel
from tests.evaluation.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SavedModel(write_tiny(tmp_path_factory.mktemp("model") / "export" / "0"))


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory):
    return SavedModel(write_tiny(tmp_path_factory.mktemp("masked") / "export" / "0", causal=False))


@pytest.fixture
def examples():
    return digits().valid.take(np.arange(50))


def _counting(encoder):
    """The encoder, and the list of the batch sizes it is called with."""
    calls = []

    def encode(images):
        calls.append(len(images))
        return encoder.encode(images)

    return dataclasses.replace(encoder, encode=encode), calls


def test_all_layers_come_from_one_pass_and_equal_the_signature(model, examples, tmp_path):
    encoder, calls = _counting(features.pretrained_encoder(model))
    [cached] = cached_features([encoder], examples, str(tmp_path), batch_size=16)
    expected = model.signature("features")(images=examples.images)["features"]
    stored = np.stack([cached.open(layer) for layer in range(cached.num_layers)], axis=1)
    assert len(calls) == 4  # 50 images in batches of 16
    np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_second_call_reads_the_cache(model, examples, tmp_path):
    encoder, calls = _counting(features.pretrained_encoder(model))
    [first] = cached_features([encoder], examples, str(tmp_path), batch_size=16)
    calls.clear()
    both = [features.raw_pixels_encoder(), encoder]
    pixels, second = cached_features(both, examples, str(tmp_path), batch_size=32)
    assert calls == [] and second.folder == first.folder
    np.testing.assert_array_equal(pixels.open(0), examples.images.reshape(50, -1))


def test_other_images_encoders_and_masks_have_cache_entries_of_their_own(
    model, masked_model, examples, tmp_path
):
    folders = set()
    changed = examples.images.copy()
    changed[7, 3, 3] ^= 1
    for encoder, images in (
        (features.pretrained_encoder(model), examples),
        (features.pretrained_encoder(model), ArrayExamples(changed, examples.labels)),
        (features.untrained_encoder(model, seed=1), examples),
        (features.untrained_encoder(model, seed=2), examples),
        (features.raw_pixels_encoder(), examples),
        (features.pretrained_encoder(masked_model), examples),
        *((encoder, examples) for encoder in features.masked_encoders(masked_model, 2)),
    ):
        [cached] = cached_features([encoder], images, str(tmp_path), batch_size=16)
        folders.add(cached.folder)
    assert len(folders) == 8


def test_masks_depend_on_image_and_mask_index_alone(masked_model, examples):
    first, second = features.masked_encoders(masked_model, 2)
    images = examples.images[:6]
    encoded = first.encode(images)
    np.testing.assert_allclose(first.encode(images[3:]), encoded[3:], atol=1e-5)
    assert np.abs(second.encode(images) - encoded).max() > 1e-3
    # A bright and a dark image have other masks: the differences to no mask are not proportional.
    unmasked = features.pretrained_encoder(masked_model).encode(images)
    assert np.abs(encoded - unmasked).max() > 1e-3


def test_only_masked_models_have_random_inputs(model, masked_model):
    assert features.has_random_inputs(masked_model) and not features.has_random_inputs(model)


def test_fingerprint_of_a_model_changes_with_its_weights(model, tmp_path):
    copy = shutil.copytree(model.path, tmp_path / "copy")
    assert features.folder_fingerprint(str(copy)) == features.folder_fingerprint(model.path)
    variables = copy / "variables" / "variables.data-00000-of-00001"
    content = bytearray(variables.read_bytes())
    content[100] ^= 1
    variables.write_bytes(content)
    assert features.folder_fingerprint(str(copy)) != features.folder_fingerprint(model.path)


def test_interrupted_pass_is_repeated(examples, tmp_path):
    def interrupted(images):
        raise KeyboardInterrupt

    encoder = features.raw_pixels_encoder()
    with pytest.raises(KeyboardInterrupt):
        cached_features(
            [encoder, dataclasses.replace(encoder, fingerprint="other", encode=interrupted)],
            examples,
            str(tmp_path),
            batch_size=16,
        )
    [cached] = cached_features([encoder], examples, str(tmp_path), batch_size=16)
    np.testing.assert_array_equal(cached.open(0), examples.images.reshape(50, -1))
    assert len(os.listdir(tmp_path)) == 2  # with the lock


def test_two_programs_with_one_cache_compute_it_once(examples, tmp_path):
    pixels, calls = _counting(features.raw_pixels_encoder())
    started, waits = threading.Event(), threading.Event()

    def encode(images):
        started.set()
        assert waits.wait(60)
        return pixels.encode(images)

    def compute(encoder):
        [cached] = cached_features([encoder], examples, str(tmp_path / "features"), batch_size=16)
        return np.array(cached.open(0))

    class Stderr(io.StringIO):
        def write(self, text):
            if "waiting for another program" in text:
                waits.set()
            return len(text)

    with ThreadPoolExecutor() as threads, contextlib.redirect_stderr(Stderr()):
        first = threads.submit(compute, dataclasses.replace(pixels, encode=encode))
        assert started.wait(60)
        second = threads.submit(compute, pixels)
        np.testing.assert_array_equal(first.result(), second.result())
    assert sum(calls) == 4 * 16  # 50 images, once


def test_palette_counts_ignore_positions(model, examples):
    encode = features.palette_counts_encoder(model).encode
    counts = encode(examples.images)
    assert (counts.sum(axis=-1) == 64).all()
    np.testing.assert_array_equal(encode(examples.images[:, ::-1]), counts)


def test_untrained_network_is_determined_by_its_seed(model, examples):
    first, again = (features.untrained_encoder(model, 3).encode(examples.images) for _ in range(2))
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert first.shape == (50, 3, 16)


def test_randomly_cropped_photographs_are_encoded_with_their_centre_crop(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path in paths:
        write_png(path, np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8"))
    encoder, folders = features.raw_pixels_encoder(), []
    for crop in ("centre", "random"):
        examples = FileExamples(paths, [0, 1, 2], (8, 8), crop=crop)
        [cached] = cached_features([encoder], examples, str(tmp_path / "features"), batch_size=2)
        centres = examples.arrays()[0].reshape(3, -1)
        assert np.abs(cached.open(0).astype(int) - centres).max() <= 2
        folders.append(cached.folder)
    assert folders[0] == folders[1]
