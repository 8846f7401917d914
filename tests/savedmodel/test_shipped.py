"""The models that come with the package: their names, their losses, the cache of SavedModels."""

import os

import numpy as np
import pytest

import igpt_tf
from igpt_tf.data import source_from_description
from igpt_tf.errors import InputError
from igpt_tf.evaluation.plots import run_name
from igpt_tf.savedmodel import shipped
from igpt_tf.savedmodel.load import SavedModel
from igpt_tf.savedmodel.metadata import find


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IGPT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", params=shipped.MODELS)
def pretrained(request, cache):
    return igpt_tf.load(request.param)


def test_the_weights_give_the_stated_loss_on_the_held_out_images(pretrained):
    source = source_from_description(pretrained.metadata["data"])
    assert pretrained.metadata["data"]["fingerprint"] == source.fingerprint()
    images, _ = source.valid.arrays()
    loss = igpt_tf.score(pretrained, images, batch_size=360).mean()
    assert loss == pytest.approx(pretrained.metadata["nats_per_token"], abs=1e-3)


def test_the_saved_model_of_a_name_is_written_once_and_samples(pretrained, cache):
    path = find("digits")
    assert os.path.dirname(path) == str(cache / "digits")
    written = os.stat(path).st_ino
    assert find("digits") == path and os.stat(path).st_ino == written
    assert os.listdir(cache / "digits") == [os.path.basename(path)]
    assert run_name({"saved_model": path, "step": 1400}) == "digits, step 1,400"
    images = SavedModel("digits").signature("sample")(num_images=2, seed=3)["images"]
    np.testing.assert_array_equal(images, igpt_tf.sample(pretrained, 2, seed=3))


def test_what_is_stored_gives_the_same_files(pretrained, cache, tmp_path):
    shipped.store("digits", str(tmp_path))
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (shipped.MODELS["digits"] / path.name).read_bytes()


def test_the_files_of_a_model_are_small_and_come_with_a_card():
    for folder in shipped.MODELS.values():
        assert {path.name for path in folder.iterdir()} == {
            "README.md",
            "metadata.json",
            "weights.safetensors",
        }
    assert sum(path.stat().st_size for path in shipped.MODELS["digits"].iterdir()) < 1e6


def test_a_folder_of_that_name_comes_first(autoregressive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(os.path.dirname(autoregressive.path), "digits")
    assert find("digits") == os.path.join("digits", "70")


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"there is digits.*Received: path=digit$"):
        find("digit")


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", os.path.join(os.devnull, "cache"))
    with pytest.raises(InputError, match="set IGPT_CACHE to another folder"):
        find("digits")
