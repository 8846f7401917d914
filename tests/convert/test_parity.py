"""Agreement with Hugging Face's ImageGPT in both directions. Needs torch and transformers.

python -m pip install -r requirements-parity.txt
"""

import importlib.util
import json

import numpy as np
import pytest

from igpt_tf.convert.huggingface_export import write_huggingface
from igpt_tf.convert.huggingface_import import HuggingFaceFolder
from igpt_tf.convert.imported_model import write_imported
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.sampler import Sampler
from igpt_tf.savedmodel.load import SavedModel
from tests.convert import transformers_reference as reference
from tests.convert.random_models import assert_same_weights, random_model, random_palette

pytestmark = pytest.mark.parity

SIZES = {
    "one_head": {"layers": 1, "dim": 16, "heads": 1},
    "three_heads": {"layers": 2, "dim": 24, "heads": 3},
    "five_heads": {"layers": 4, "dim": 40, "heads": 5, "image_size": (6, 6), "vocabulary": 31},
    "wide_image": {"layers": 2, "dim": 32, "heads": 8, "image_size": (3, 7), "vocabulary": 16},
    "published_context": {"dim": 32, "heads": 2, "image_size": (32, 32), "vocabulary": 512},
}


@pytest.fixture(autouse=True, scope="module")
def _needs_transformers():
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:  # not imported: see transformers_reference
            pytest.skip(f"{name} is missing: requirements-parity.txt")


@pytest.fixture(params=SIZES, scope="module")
def pair(request, tmp_path_factory):
    """(model, its Hugging Face folder, tokens int[B,T], outputs of the library for the tokens)."""
    model = random_model(**SIZES[request.param])
    folder = tmp_path_factory.mktemp("folder") / "folder"
    palette = random_palette(model.vocabulary_size)
    write_huggingface(model, palette, str(folder))
    # Tokens of images in the palette's own colours, so that a SavedModel encodes them as they are.
    tokens = np.random.default_rng(3).integers(0, len(palette), (2, model.sequence_length))
    return model, folder, tokens, reference.run("forward", folder, tokens=tokens)


def _assert_close(actual, expected):
    assert np.abs(np.asarray(actual) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_logits_agree(pair):
    model, _, tokens, expected = pair
    _assert_close(model(tokens), expected["logits"])


def test_features_agree_with_normalised_hidden_states(pair):
    model, _, tokens, expected = pair
    _assert_close(model.features(tokens), expected["features"])


def test_nats_per_token_agree(pair):
    model, _, tokens, expected = pair
    logits = np.asarray(model(tokens), "float64")
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    nats = log_sum - np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    _assert_close(nats.mean(axis=1), expected["nats"].mean(axis=1))


def test_greedy_completions_agree(pair):
    model, _, tokens, expected = pair
    given = reference.num_given(model.sequence_length)
    actual = Sampler(model).complete(tokens, given, SamplingParams(top_k=1))
    np.testing.assert_array_equal(actual, expected["completed"])


def test_library_finds_every_tensor_in_an_exported_folder(pair):
    outputs = reference.run("loading_report", pair[1])
    for report in json.loads(str(outputs["reports"])):
        assert not report["missing_keys"] and not report["mismatched_keys"]
        assert {name.split(".")[0] for name in report["unexpected_keys"]} <= {"lm_head"}


def test_imported_saved_model_agrees(pair, tmp_path):
    _, path, tokens, expected = pair
    folder = HuggingFaceFolder(str(path))
    palette = folder.palette()
    report = write_imported(folder.load(), palette, str(tmp_path), step=0, source="transformers")
    saved = SavedModel(report["saved_model"])
    images = palette.decode(tokens, saved.image_size)
    encoded = palette.encode(images)
    if (encoded != tokens).any():  # two colours are equal in 8 bits
        expected = reference.run("forward", path, tokens=encoded)
    surprise = saved.signature("score")(images=images)["surprise"]
    _assert_close(surprise.reshape(tokens.shape), expected["nats"])
    given = reference.num_given(tokens.shape[1])
    params = SamplingParams(top_k=1).as_dict()
    completed = saved.signature("complete")(images=images, num_given=given, **params)["tokens"]
    np.testing.assert_array_equal(completed, expected["completed"])


def test_model_saved_by_the_library_is_imported_and_agrees(tmp_path):
    reference.run("save_random", tmp_path)
    model = HuggingFaceFolder(str(tmp_path)).load()
    tokens = np.random.default_rng(3).integers(0, 11, (2, 25))
    _assert_close(model(tokens), reference.run("forward", tmp_path, tokens=tokens)["logits"])
    write_huggingface(model, random_palette(11), str(tmp_path / "again"))
    assert_same_weights(HuggingFaceFolder(str(tmp_path / "again")).load(), model)


def test_image_processor_gives_the_same_tokens_and_keeps_the_palette(tmp_path):
    model = random_model(image_size=(8, 10), vocabulary=64)
    palette = random_palette(64)
    write_huggingface(model, palette, str(tmp_path))
    images = _smooth_images(8, 10)
    expected = reference.run("process", tmp_path, images=images)["tokens"]
    far = _away_from_ties(images, palette)
    assert far.mean() > 0.99
    np.testing.assert_array_equal(palette.encode(images)[far], expected.reshape(far.shape)[far])
    # The processor has saved itself again.
    assert HuggingFaceFolder(str(tmp_path)).palette().fingerprint == palette.fingerprint


def _smooth_images(height, width, count=6) -> np.ndarray:
    """Gradients with noise: uint8[N,H,W,3]."""
    rng = np.random.default_rng(5)
    ramp = np.linspace(0, 1, height)[:, None, None] * np.linspace(0, 1, width)[:, None]
    colours = rng.uniform(0, 255, (count, 1, 1, 3))
    noise = rng.normal(0, 12, (count, height, width, 3))
    return (ramp * colours + (1 - ramp) * colours[::-1] + noise).clip(0, 255).astype("uint8")


def _away_from_ties(images, palette) -> np.ndarray:
    """bool[N,T]: pixels whose two nearest colours differ by more than float32 can err."""
    pixels = images.reshape(len(images), -1, 1, 3) / 127.5 - 1
    distances = np.sort(((pixels - palette.centroids) ** 2).sum(axis=-1), axis=-1)
    return distances[..., 1] - distances[..., 0] > 1e-5
