"""Scores: nats per token of data sets and of files of tokens."""

import json

import numpy as np
import pytest

from igpt_tf.data import digits
from igpt_tf.errors import InputError
from igpt_tf.evaluation import scores
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.load import SavedModel
from tests.evaluation.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SavedModel(write_tiny(tmp_path_factory.mktemp("model") / "export" / "0"))


def test_untrained_model_scores_as_a_uniform_distribution(model, tmp_path, monkeypatch):
    plotted = []
    monkeypatch.setattr(scores.plots, "surprise_map", lambda *arguments: plotted.append(arguments))
    report = scores.evaluate(saved_model=model.path, workdir=str(tmp_path), batch_size=100)
    assert report["num_images"] == 360
    assert report["nats_per_token"] == pytest.approx(np.log(17), abs=1e-5)
    assert report["standard_error"] == pytest.approx(0, abs=1e-6)
    assert json.loads((tmp_path / "evaluate.json").read_text()) == report
    assert scores.format_report(report).splitlines()[0].split()[:3] == [
        "data",
        "images",
        "nats/token",
    ]
    [(_, surprise, title)] = plotted
    np.testing.assert_allclose(surprise, np.full((8, 8), np.log(17)), atol=1e-5)
    assert "digits, held-out" in title


def test_one_image_has_no_standard_error(model, tmp_path):
    report = scores.evaluate(saved_model=model.path, workdir=str(tmp_path), num_images=1)
    assert report["standard_error"] is None
    assert scores.format_report(report).splitlines()[-1].split()[-1] == "2.8332"


def test_pseudo_likelihood_of_masked_models_is_named(tmp_path):
    model = write_tiny(tmp_path / "export" / "0", causal=False, num_layers=1)
    report = scores.evaluate(saved_model=model, workdir=str(tmp_path), num_images=10)
    assert report["score"] == "pseudo-likelihood"
    text = scores.format_report(report)
    assert "pseudo-nats/token" in text and "nats per hidden token" in text


def test_tokens_score_as_the_images_they_encode(model, tmp_path):
    path = str(tmp_path / "tokens.npy")
    np.save(path, model.palette.encode(digits().valid.images))
    report = scores.evaluate(saved_model=model.path, workdir=str(tmp_path), tokens=path)
    assert report["num_images"] == 360
    tokens = scores.load_tokens(path, model)
    images = np.concatenate(list(scores.token_batches(model, tokens, 64)))
    np.testing.assert_array_equal(model.palette.encode(images), tokens)


@pytest.mark.parametrize("shape", [(-1, 64), (-1, 8, 8)])
@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_files_of_tokens_have_rows_or_images(model, tmp_path, shape, dtype):
    tokens = model.palette.encode(digits().valid.images)
    path = str(tmp_path / "teX.npy")
    np.save(path, tokens.reshape(shape).astype(dtype))
    np.testing.assert_array_equal(scores.load_tokens(path, model), tokens)
    assert len(scores.load_tokens(path, model, num_images=70)) == 70


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.full((2, 64), 17), "0 to 16"),
        (np.zeros((2, 65), "int32"), r"integers \[N, 64\]"),
        (np.zeros((2, 4, 16), "int32"), r"or \[N, 8, 8\]"),
        (np.zeros((2, 64)), r"integers \[N, 64\]"),
    ],
)
def test_tokens_that_do_not_fit_the_model_are_refused(model, tmp_path, tokens, message):
    np.save(tmp_path / "tokens.npy", tokens)
    with pytest.raises(InputError, match=message):
        scores.load_tokens(str(tmp_path / "tokens.npy"), model)


def test_a_web_page_saved_as_npy_is_refused_without_advice_to_unpickle(model, tmp_path):
    (tmp_path / "tokens.npy").write_text("<html>not found</html>")
    with pytest.raises(InputError) as caught:
        scores.load_tokens(str(tmp_path / "tokens.npy"), model)
    assert "not a NumPy array" in str(caught.value) and "pickle" not in str(caught.value)


def test_tokens_of_a_palette_with_two_equal_colours_are_refused():
    grey = Palette.grey(17).centroids.copy()
    grey[5] = grey[4] + 1e-4
    with pytest.raises(InputError, match="is encoded as another token"):
        scores._check_round_trip(Palette(grey), np.arange(17))


def test_missing_split_is_refused():
    with pytest.raises(InputError, match="splits train, valid"):
        scores.choose_split(digits(), "test")
