"""SavedModels are written completely or not at all, and read back exactly or refused."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel import load
from igpt_tf.savedmodel.load import load_model
from igpt_tf.savedmodel.write import write_pretrained

WEIGHTS = os.path.join("variables", "variables.data-00000-of-00001")


def _model():
    return ImageGPT(image_size=(2, 2), vocabulary_size=4, num_layers=1, hidden_dim=4, num_heads=1)


def _write(path, *, step=1, colours=4, model=None):
    palette, objective = Palette.grey(colours), {"name": "autoregressive"}
    model = model or _model()
    return write_pretrained(model, palette, str(path), objective=objective, data=None, step=step)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("written") / "export" / "9", step=9)


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "export" / "9")


def _refused(path, message, do=load.SavedModel):
    with pytest.raises(InputError, match=message) as caught:
        do(str(path))
    assert "\n" not in str(caught.value)


def _use(path):
    return load.SavedModel(path).signature("score")


def test_a_live_model_is_loaded_with_exactly_its_weights(pretrained):
    model, palette, metadata = load_model(pretrained.path)
    assert palette.fingerprint == pretrained.palette.fingerprint
    assert metadata["step"] == 70
    for loaded, original in zip(model.weights, pretrained.model.weights, strict=True):
        np.testing.assert_array_equal(loaded, original)


def test_each_weight_is_stored_once(autoregressive):
    variables = os.path.join(autoregressive.path, "variables", "variables")
    stored = [int(np.prod(shape)) for name, shape in tf.train.list_variables(variables) if shape]
    assert sum(stored) == sum(int(np.prod(w.shape)) for w in autoregressive.model.weights)


def test_the_folder_of_versions_opens_the_highest_step(copy):
    shutil.copytree(copy, copy.parent / "10")
    shutil.copytree(copy, copy.parent / ".11.part")
    (copy.parent / "12").mkdir()
    assert load.SavedModel(str(copy.parent)).path == str(copy.parent / "10")


def test_writing_again_replaces_the_folder_and_leaves_nothing_beside_it(copy):
    (copy / "stale").touch()
    _write(copy, step=11)
    assert load.SavedModel(str(copy)).metadata["step"] == 11
    assert not (copy / "stale").exists()
    assert os.listdir(copy.parent) == ["9"]


def test_a_failure_while_writing_keeps_the_old_model(copy, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("igpt_tf.savedmodel.write.write_metadata", fail)
    with pytest.raises(OSError, match="disk full"):
        _write(copy, step=11)
    assert load.SavedModel(str(copy)).metadata["step"] == 9


def test_the_palette_of_a_run_may_be_that_of_a_savedmodel(written, tmp_path):
    expected = load.SavedModel(str(written)).palette
    expected.save(str(tmp_path / "palette.npy"))
    for path in (str(written), str(tmp_path / "palette.npy")):
        assert load.load_palette(path=path).fingerprint == expected.fingerprint
    _refused(tmp_path, "holds no SavedModel", lambda path: load.load_palette(path=path))


def test_a_palette_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match="colours=5, vocabulary_size=4"):
        _write(tmp_path / "1", colours=5)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_written(tmp_path, value):
    model = _model()
    model.sos.assign([value, 1, 2, 3])
    with pytest.raises(InputError, match="sos has values that are NaN or infinite.*1 of 4"):
        _write(tmp_path / "1", model=model)
    assert not os.listdir(tmp_path)


def test_weights_that_are_not_finite_are_not_loaded(tmp_path, monkeypatch):
    model = _model()
    model.sos.assign([np.nan, 1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr("igpt_tf.savedmodel.write.check_finite", lambda *_: None)
        path = _write(tmp_path / "1", model=model)
    _refused(path, "sos has values that are NaN or infinite", load_model)


def test_folders_without_a_savedmodel_of_this_package_are_refused(copy, tmp_path):
    _refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "holds no SavedModel")
    (tmp_path / "run" / "export").mkdir(parents=True)
    _refused(tmp_path / "run", "that of a run is its folder export/")
    os.remove(copy / "assets" / "metadata.json")
    _refused(copy, "not written by igpt_tf")


def test_an_unknown_signature_is_refused_with_the_names_of_the_others(written):
    _refused("draw", "score.*signature=draw", load.SavedModel(written).signature)


@pytest.mark.parametrize(
    ("name", "inputs", "named"),
    [
        ("score", {"images": np.full((1, 4, 4, 3), 0.5)}, "images as uint8.*float64"),
        ("decode", {"tokens": np.zeros((1, 16))}, "tokens as int32.*float64"),
        ("sample", {"num_images": 1.5, "seed": 0}, "num_images as int32.*float64"),
    ],
)
def test_inputs_that_tensorflow_would_truncate_are_refused(written, name, inputs, named):
    with pytest.raises(InputError, match=named):
        load.SavedModel(written).signature(name)(**inputs)


def test_weights_cut_short_are_refused(copy):
    os.truncate(copy / WEIGHTS, 200)
    _refused(copy, "is damaged", load_model)
    _refused(copy, "damaged.*export it again", _use)


def test_damaged_weights_are_refused(copy):
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[200] ^= 255
    (copy / WEIGHTS).write_bytes(bytes(content))
    _refused(copy, "damaged", load_model)
    os.remove(copy / "variables" / "variables.index")
    _refused(copy, "cannot be read", load_model)
    _refused(copy, "damaged", _use)


def test_a_graph_whose_parts_do_not_fit_is_refused(written, monkeypatch):
    def fail(_):
        raise KeyError("while/Prod_1:output:0")

    monkeypatch.setattr("tensorflow.saved_model.load", fail)
    _refused(written, "damaged.*Prod_1.*export it again", _use)


def test_the_palette_of_another_model_is_refused(copy):
    path = copy / "assets" / "palette.npy"
    Palette(Palette.grey(4).centroids[::-1]).save(str(path))
    _refused(copy, "palette is not the one")
    path.unlink()
    _refused(copy, "palette")
