"""The signatures compute what the live model computes, for whoever opens the SavedModel."""

import concurrent.futures
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.sampler import Sampler
from igpt_tf.savedmodel.spec import available_signatures
from tests.savedmodel.conftest import SIZES


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).integers(0, 256, (5, 4, 6, 3)).astype("uint8")


def _file(image, kind="PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def test_a_model_has_the_signatures_of_its_kind_and_no_other(pretrained):
    metadata = pretrained.saved.metadata
    assert pretrained.saved.signature_names == sorted(available_signatures(metadata))
    assert metadata["signatures"] == pretrained.saved.signature_names
    assert ("sample" in metadata["signatures"]) == (metadata["completion"] == "raster order")
    assert ("inpaint" in metadata["signatures"]) == (metadata["completion"] == "in-painting")


@pytest.mark.parametrize("batch_size", [1, 5])
def test_features_and_tokens_equal_the_live_model(pretrained, images, batch_size):
    images = images[:batch_size]
    tokens = pretrained.palette.encode(images)
    np.testing.assert_array_equal(pretrained.call("encode", images=images)["tokens"], tokens)
    features = pretrained.call("features", images=images)["features"]
    np.testing.assert_allclose(features, pretrained.model.features(tokens), rtol=1e-5, atol=1e-6)
    default = pretrained.call("serving_default", images=images)["features"]
    np.testing.assert_array_equal(default, features)


def test_images_of_the_palette_are_decoded_to_themselves(pretrained, images):
    tokens = pretrained.call("encode", images=images)["tokens"]
    decoded = pretrained.call("decode", tokens=tokens)["images"]
    expected = pretrained.palette.decode(tokens, SIZES["image_size"])
    np.testing.assert_array_equal(decoded, expected)
    again = pretrained.call("decode", **pretrained.call("encode", images=decoded))["images"]
    np.testing.assert_array_equal(again, decoded)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_surprise_is_the_cross_entropy_of_each_pixel(autoregressive, images, batch_size):
    tokens = autoregressive.palette.encode(images[:batch_size])
    logits = np.array(autoregressive.model(tokens), "float64")
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]
    score = autoregressive.call("score", images=images[:batch_size])
    np.testing.assert_allclose(score["surprise"].reshape(nats.shape), nats, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score["nats_per_token"], nats.mean(axis=1), rtol=1e-4)
    assert autoregressive.saved.metadata["score"] == "likelihood"


def test_the_score_of_a_masked_model_does_not_see_the_pixel_it_predicts(masked, images):
    assert masked.saved.metadata["score"] == "pseudo-likelihood"
    score = masked.call("score", images=images)
    np.testing.assert_allclose(
        score["nats_per_token"], score["surprise"].mean(axis=(1, 2)), rtol=1e-5
    )
    # All V colours at one pixel: their probabilities add up to 1 if none is seen.
    tokens = np.repeat(masked.palette.encode(images[:1]), 12, axis=0)
    tokens[:, 7] = np.arange(12)
    variants = masked.palette.decode(tokens, SIZES["image_size"])
    np.testing.assert_array_equal(masked.palette.encode(variants), tokens)
    surprise = masked.call("score", images=variants)["surprise"].reshape(12, -1)[:, 7]
    np.testing.assert_allclose(np.exp(-surprise).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("num_images", [1, 5])
@pytest.mark.parametrize(
    "params", [SamplingParams(seed=3), SamplingParams(3, temperature=0.7, top_k=5, top_p=0.8)]
)
def test_samples_equal_those_of_the_live_sampler(autoregressive, num_images, params):
    served = autoregressive.call("sample", num_images=num_images, **params.as_dict())
    live = Sampler(autoregressive.model).sample(num_images, params)
    np.testing.assert_array_equal(served["tokens"], live)
    expected = autoregressive.palette.decode(live, SIZES["image_size"])
    np.testing.assert_array_equal(served["images"], expected)


@pytest.mark.parametrize("num_given", [0, 9, 24])
def test_completions_equal_the_live_sampler_and_keep_the_given_pixels(
    pretrained, images, num_given
):
    tokens = pretrained.palette.encode(images)
    params = SamplingParams(seed=3)
    served = pretrained.call("complete", images=images, num_given=num_given, **params.as_dict())
    live = Sampler(pretrained.model).complete(tokens, num_given, params)
    np.testing.assert_array_equal(served["tokens"], live)
    np.testing.assert_array_equal(live[:, :num_given], tokens[:, :num_given])


def test_in_painted_images_equal_the_live_sampler_and_keep_the_known_pixels(masked, images):
    known = np.random.default_rng(0).random((5, 4, 6)) < 0.5
    tokens = masked.palette.encode(images)
    served = masked.call("inpaint", images=images, known=known, num_rounds=5, seed=3)["tokens"]
    known = known.reshape(5, 24)
    live = Sampler(masked.model).inpaint(tokens, known, SamplingParams(seed=3), num_rounds=5)
    np.testing.assert_array_equal(served, live)
    np.testing.assert_array_equal(served[known], tokens[known])


def test_a_request_is_reproducible_and_may_be_split_into_batches(autoregressive):
    whole = autoregressive.call("sample", num_images=5, seed=3)["tokens"]
    again = autoregressive.call("sample", num_images=5, seed=3)["tokens"]
    np.testing.assert_array_equal(again, whole)
    first = autoregressive.call("sample", num_images=2, seed=3)["tokens"]
    rest = autoregressive.call("sample", num_images=3, seed=5)["tokens"]
    np.testing.assert_array_equal(np.concatenate([first, rest]), whole)


def test_concurrent_requests_do_not_disturb_each_other(autoregressive):
    def sample(seed):
        return autoregressive.call("sample", num_images=3, seed=seed)["tokens"]

    alone = [sample(seed) for seed in range(12)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(sample, range(12)))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("sample", {"num_images": 0}, "num_images must be 1 to 4096. Received: num_images=0"),
        ("sample", {"num_images": 4097}, "num_images must be 1 to 4096"),
        ("sample", {"temperature": 0.0}, "temperature must be finite and positive"),
        ("sample", {"temperature": float("nan")}, "temperature must be finite and positive"),
        ("sample", {"temperature": float("inf")}, "temperature must be finite and positive"),
        ("sample", {"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ("sample", {"top_p": 1.01}, "top_p must be above 0 and at most 1"),
        ("sample", {"top_k": -1}, "top_k must be 0"),
        ("complete", {"num_given": -1}, "num_given must be 0 to 24"),
        ("complete", {"num_given": 25}, "num_given must be 0 to 24"),
        ("complete", {"images": np.zeros((1, 4, 5, 3), "uint8")}, "refused its inputs"),
        ("complete", {"color": 1}, "signature complete takes"),
        ("decode", {"tokens": np.full((1, 24), 12)}, "tokens must be 0 to 11"),
        ("decode", {"tokens": np.full((1, 24), -1)}, "tokens must be 0 to 11"),
        ("decode", {}, "signature decode takes tokens"),
    ],
)
def test_invalid_inputs_are_refused_in_one_line(autoregressive, images, name, wrong, message):
    valid = {
        "sample": {"num_images": 1, "seed": 0},
        "complete": {"images": images, "num_given": 3, "seed": 0},
        "decode": {},
    }
    with pytest.raises(InputError, match=message) as caught:
        autoregressive.call(name, **{**valid[name], **wrong})
    assert "\n" not in str(caught.value)


ALONE = """
import sys
import tensorflow as tf
saved = tf.saved_model.load(sys.argv[1])
plain = dict(temperature=tf.constant(1.0), top_k=tf.constant(0), top_p=tf.constant(1.0))
answer = saved.signatures["sample"](num_images=tf.constant(2), seed=tf.constant(3), **plain)
features = saved.signatures["serving_default"](images=answer["images"])["features"]
assert features.shape == (2, 3, 24), features.shape
with_defaults = saved.sample(num_images=2, seed=3)
tf.debugging.assert_equal(with_defaults["tokens"], answer["tokens"])
assert "igpt_tf" not in sys.modules
print(answer["tokens"].numpy().tolist())
"""


def test_the_model_opens_with_tensorflow_alone_in_an_empty_folder(autoregressive, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, autoregressive.path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tokens = json.loads(done.stdout.splitlines()[-1])
    assert tokens == autoregressive.call("sample", num_images=2, seed=3)["tokens"].tolist()
    assert not os.listdir(tmp_path)
