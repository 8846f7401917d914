"""The pretrained models: their names, their losses, the cache of SavedModels."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import igpt_tf
from igpt_tf.data import digits, source_from_description
from igpt_tf.errors import InputError
from igpt_tf.evaluation.plots import run_name
from igpt_tf.objectives import objective_from_config
from igpt_tf.savedmodel import shipped
from igpt_tf.savedmodel.load import SavedModel
from igpt_tf.savedmodel.metadata import find
from igpt_tf.savedmodel.write import write_pretrained


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IGPT_CACHE", str(folder))
        yield folder


def is_present(name):
    return (shipped.MODELS[name] / "model.safetensors").exists()


@pytest.fixture(scope="module", params=filter(is_present, shipped.MODELS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pretrained(name, cache):
    return igpt_tf.load(name)


def test_the_weights_give_the_stated_loss_of_random_tokens(name, pretrained):
    stated = json.loads((shipped.MODELS[name] / "metadata.json").read_text())["random_tokens_nats"]
    objective = objective_from_config(pretrained.metadata["objective"])
    loss = shipped.random_tokens_nats(pretrained.model, objective)
    assert loss == pytest.approx(stated, abs=1e-3)


def test_the_weights_give_the_stated_loss_on_the_held_out_images(name, pretrained):
    try:
        source = source_from_description(pretrained.metadata["data"])
    except InputError as error:
        pytest.skip(f"the data of {name} are not here: {error}")
    assert pretrained.metadata["data"]["fingerprint"] == source.fingerprint()
    images, _ = source.valid.arrays()
    loss = igpt_tf.score(pretrained, images, batch_size=360).mean()
    assert loss == pytest.approx(pretrained.metadata["nats_per_token"], abs=1e-3)


def test_the_saved_model_of_a_name_is_written_once_and_samples(name, pretrained, cache):
    path = find(name)
    assert os.path.dirname(path) == str(cache / name)
    written = os.stat(path).st_ino
    assert find(name) == path and os.stat(path).st_ino == written
    assert os.listdir(cache / name) == [os.path.basename(path)]
    assert run_name({"saved_model": path, "step": 1400}) == f"{name}, step 1,400"
    images = SavedModel(name).signature("sample")(num_images=2, seed=3)["images"]
    np.testing.assert_array_equal(images, igpt_tf.sample(pretrained, 2, seed=3))


def test_a_program_may_set_its_threads_after_the_saved_model_is_written(tmp_path):
    script = (
        "from igpt_tf import runtime; from igpt_tf.savedmodel import shipped; "
        "shipped.export('digits'); runtime.use_one_thread_per_op()"
    )
    environment = {**os.environ, "IGPT_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_what_is_stored_gives_the_same_files(cache, tmp_path):
    printed = shipped.store("digits", str(tmp_path))
    assert "203,520 weights in 0.4 MB" in printed
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (shipped.MODELS["digits"] / path.name).read_bytes()


def test_half_precision_that_changes_the_loss_is_refused(cache, tmp_path, monkeypatch):
    losses = iter([1.2762, 1.2768])
    monkeypatch.setattr(shipped, "mean_nats", lambda *_: next(losses))
    with pytest.raises(InputError, match="1.27620 before, 1.27680 after"):
        shipped.store("digits", str(tmp_path))
    assert not os.listdir(tmp_path)


def write_untrained(path, data):
    network = igpt_tf.ImageGPT(
        image_size=(8, 8), vocabulary_size=17, num_layers=1, hidden_dim=8, num_heads=1
    )
    objective = {"name": "autoregressive"}
    write_pretrained(network, igpt_tf.Palette.grey(17), path, objective=objective, data=data)


def test_a_loss_that_the_saved_model_lacks_is_measured(tmp_path):
    write_untrained(str(tmp_path / "1"), {"name": "digits", "arguments": {"heldout": 0.1}})
    shipped.store(str(tmp_path / "1"), str(tmp_path / "stored"))
    stored = json.loads((tmp_path / "stored" / "metadata.json").read_text())
    assert stored["nats_per_token"] == pytest.approx(np.log(17), abs=1e-6)
    assert stored["data"]["fingerprint"] == digits(heldout=0.1).fingerprint()


def test_data_with_an_absolute_path_are_refused(tmp_path):
    write_untrained(str(tmp_path / "1"), {"name": "npz", "arguments": {"path": "/data/x.npz"}})
    with pytest.raises(InputError, match="relative path.*path=/data/x.npz"):
        shipped.store(str(tmp_path), str(tmp_path / "stored"))


def test_a_model_that_was_not_installed_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(shipped.MODELS, "cifar10", tmp_path / "models" / "cifar10")
    with pytest.raises(InputError, match="folder models/ of the repository.*Received: cifar10"):
        find("cifar10")


def test_the_files_of_a_model_are_small_and_come_with_a_card(name):
    paths = list(shipped.MODELS[name].iterdir())
    assert {path.name for path in paths} == {"README.md", "metadata.json", "model.safetensors"}
    in_package = shipped.MODELS[name].parent.name == "pretrained"
    assert sum(path.stat().st_size for path in paths) < (1e6 if in_package else 1e7)


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
