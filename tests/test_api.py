"""The Python API: its examples run, its results are those of the model, and its import is lazy."""

import doctest
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import igpt_tf
from igpt_tf import api
from igpt_tf.errors import InputError
from igpt_tf.model import image_gpt
from igpt_tf.objectives import Autoregressive, Masked
from igpt_tf.sampling import params, sampler
from igpt_tf.savedmodel.write import write_pretrained

SIZES = {
    "image_size": (4, 4),
    "vocabulary_size": 8,
    "num_layers": 2,
    "hidden_dim": 16,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = igpt_tf.ImageGPT(**SIZES)
    model.output_embedding.assign(keras.random.normal(model.output_embedding.shape))
    folder = str(tmp_path_factory.mktemp("api") / "1")
    about = {"objective": Autoregressive().get_config(), "data": None, "step": 1}
    write_pretrained(model, igpt_tf.Palette.grey(8), folder, **about, nats_per_token=2.0)
    return folder


@pytest.fixture(scope="module")
def pretrained(path):
    return igpt_tf.load(path)


@pytest.fixture(scope="module")
def masked():
    keras.utils.set_random_seed(1)
    model = igpt_tf.ImageGPT(**SIZES, causal=False)
    model.output_embedding.assign(keras.random.normal(model.output_embedding.shape))
    return igpt_tf.Pretrained(model, igpt_tf.Palette.grey(8), {"objective": Masked().get_config()})


@pytest.mark.parametrize("module", [api, params, sampler, image_gpt])
def test_the_examples_in_docstrings_run(module, path, pretrained, masked):
    names = {
        "np": np,
        "keras": keras,
        "igpt_tf": igpt_tf,
        "path": path,
        "pretrained": pretrained,
        "masked": masked,
        "images": np.zeros((3, 4, 4, 3), "uint8"),
        "model": pretrained.model,
    }
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted and not result.failed


def test_results_are_those_of_the_model(pretrained):
    images = igpt_tf.sample(pretrained, 3, seed=1)
    tokens = pretrained.palette.encode(images)
    logits = np.asarray(pretrained.model(tokens))
    nats = -np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    nats += np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(
        igpt_tf.score(pretrained, images, batch_size=2).reshape(3, -1), nats, atol=1e-5
    )
    np.testing.assert_allclose(
        igpt_tf.features(pretrained, images, batch_size=2),
        pretrained.model.features(tokens),
        atol=1e-6,
    )
    np.testing.assert_array_equal(igpt_tf.complete(pretrained, images, 16), images)
    np.testing.assert_array_equal(igpt_tf.sample(pretrained, 1, seed=3), images[2:])


def test_in_painting_keeps_known_pixels_and_reads_no_others(masked):
    tokens = np.random.default_rng(0).integers(0, 8, (3, 16))
    images = masked.palette.decode(tokens, (4, 4))
    known = np.zeros((3, 4, 4), bool)
    known[:, :, :2] = True
    filled = igpt_tf.inpaint(masked, images, known, seed=5, num_rounds=3)
    np.testing.assert_array_equal(filled[known], images[known])
    assert (filled[~known] != images[~known]).any()
    hidden = np.where(known[..., None], images, 255).astype("uint8")
    np.testing.assert_array_equal(
        igpt_tf.inpaint(masked, hidden, known, seed=5, num_rounds=3), filled
    )
    with pytest.raises(InputError, match=r"known\.shape=\(4, 4\)"):
        igpt_tf.inpaint(masked, images, known[0])


def test_a_model_of_the_other_objective_is_refused(pretrained, masked):
    images = np.zeros((1, 4, 4, 3), "uint8")
    with pytest.raises(InputError, match="cannot in-paint"):
        igpt_tf.inpaint(pretrained, images, np.ones((1, 4, 4), bool))
    with pytest.raises(InputError, match="cannot sample"):
        igpt_tf.sample(masked, 1)


def test_home_folders_are_expanded_and_addresses_of_buckets_refused(path, monkeypatch):
    monkeypatch.setenv("HOME", os.path.dirname(path))
    assert igpt_tf.load("~/1").metadata["step"] == 1
    with pytest.raises(InputError, match="only local files.*path=gs://bucket/export"):
        igpt_tf.load("gs://bucket/export")


def test_importing_the_package_does_not_import_tensorflow():
    script = "import igpt_tf, sys; dir(igpt_tf); print('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        igpt_tf.smaple  # noqa: B018


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (np.zeros((2, 2, 8, 3), "uint8"), r"shape=\(2, 2, 8, 3\)"),  # as many pixels
        (np.zeros((2, 6, 6, 3), "uint8"), r"shape=\(2, 6, 6, 3\)"),
        (np.zeros((0, 4, 4, 3), "uint8"), r"shape=\(0, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 3)), "dtype=float64"),
        (["a.png", "b.png"], "dtype=<U5"),
        (None, "dtype=object"),
    ],
)
def test_images_that_do_not_fit_the_model_are_refused(pretrained, masked, images, named):
    known = np.zeros(np.shape(images)[:3], bool)
    for call in (
        lambda: igpt_tf.features(pretrained, images),
        lambda: igpt_tf.score(pretrained, images),
        lambda: igpt_tf.complete(pretrained, images, 3),
        lambda: igpt_tf.inpaint(masked, images, known),
    ):
        with pytest.raises(InputError, match=named):
            call()


def test_lists_and_tensors_of_images_are_taken_like_arrays(pretrained):
    import tensorflow as tf

    images = igpt_tf.sample(pretrained, 2)
    expected = igpt_tf.score(pretrained, images)
    np.testing.assert_array_equal(igpt_tf.score(pretrained, list(images)), expected)
    np.testing.assert_array_equal(igpt_tf.score(pretrained, tf.constant(images)), expected)


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        ("sample", {"num_images": 2.5}, "num_images must be an integer. Received: num_images=2.5"),
        ("sample", {"num_images": True}, "num_images=True"),
        ("sample", {"num_images": 1, "temperature": "1"}, "temperature='1'"),
        ("sample", {"num_images": 1, "top_k": 1.5}, "top_k must be an integer"),
        ("complete", {"num_given": 0.5}, "num_given must be an integer"),
        ("complete", {"num_given": None}, "num_given=None"),
        ("features", {"batch_size": 0}, "batch_size must be 1 or more"),
        ("score", {"batch_size": 2.5}, "batch_size must be an integer"),
        ("inpaint", {"num_rounds": 2.0}, "num_rounds must be an integer"),
        ("inpaint", {"known": np.full((2, 4, 4), 0.5)}, "known.dtype=float64"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(pretrained, masked, function, arguments, named):
    model = masked if function == "inpaint" else pretrained
    if function != "sample":
        arguments = {"images": np.zeros((2, 4, 4, 3), "uint8"), **arguments}
    if function == "inpaint":
        arguments = {"known": np.zeros((2, 4, 4), bool), **arguments}
    with pytest.raises(InputError, match=named):
        getattr(igpt_tf, function)(model, **arguments)


def test_parts_of_different_models_are_refused(pretrained, tmp_path):
    with pytest.raises(InputError, match="colours=5, vocabulary_size=8"):
        igpt_tf.Pretrained(pretrained.model, igpt_tf.Palette.grey(5), pretrained.metadata)
    masked_metadata = {"objective": Masked().get_config()}
    images = np.zeros((1, 4, 4, 3), "uint8")
    other = igpt_tf.Pretrained(pretrained.model, pretrained.palette, masked_metadata)
    with pytest.raises(InputError, match="the objective masked needs a model with causal=False"):
        igpt_tf.score(other, images)
    unnamed = igpt_tf.Pretrained(pretrained.model, pretrained.palette, {})
    with pytest.raises(InputError, match="unknown objective"):
        igpt_tf.score(unnamed, images)
    description = {**masked_metadata, "data": None}
    with pytest.raises(InputError, match="the objective masked needs"):
        write_pretrained(pretrained.model, pretrained.palette, str(tmp_path / "1"), **description)
    description = {"objective": Autoregressive().get_config(), "data": None, "step": -1}
    with pytest.raises(InputError, match=r"the description of the model is wrong.*\$\.step"):
        write_pretrained(pretrained.model, pretrained.palette, str(tmp_path / "1"), **description)
    assert not list(tmp_path.iterdir())
