"""Claims about the tools' door: the newest version is opened, what is not ours is refused."""

import os
import shutil

import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel import load
from igpt_tf.savedmodel.load import load_model
from igpt_tf.savedmodel.write import write_pretrained


def _write(path, step=1, colours=4):
    model = ImageGPT(image_size=(2, 2), vocabulary_size=4, num_layers=1, hidden_dim=4, num_heads=1)
    palette = Palette.grey(colours)
    return write_pretrained(model, palette, str(path), objective={}, data=None, step=step)


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


def test_the_base_path_opens_the_version_of_the_highest_step(copy):
    shutil.copytree(copy, copy.parent / "10")
    shutil.copytree(copy, copy.parent / ".11.unfinished")
    (copy.parent / "12").mkdir()
    assert load.SavedModel(str(copy.parent)).path == str(copy.parent / "10")


def test_writing_again_replaces_the_folder_and_leaves_nothing_beside_it(copy):
    (copy / "stale").touch()
    _write(copy, step=11)
    assert load.SavedModel(str(copy)).metadata["step"] == 11
    assert not (copy / "stale").exists()
    assert os.listdir(copy.parent) == ["9"]


def test_a_failure_while_writing_leaves_the_old_model_alone(copy, monkeypatch):
    monkeypatch.setattr("igpt_tf.savedmodel.describe.save", _fail)
    with pytest.raises(OSError, match="disk full"):
        _write(copy, step=11)
    assert load.SavedModel(str(copy)).metadata["step"] == 9


def _fail(*_):
    raise OSError("disk full")


def test_a_palette_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match="colours=5, vocabulary_size=4"):
        _write(tmp_path / "1", colours=5)
    assert not os.listdir(tmp_path)


def test_folders_that_are_not_ours_are_refused_in_one_line(copy, tmp_path):
    _refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "holds no SavedModel")
    os.remove(copy / "assets" / "metadata.json")
    _refused(copy, "not one of igpt_tf's")
    (copy / "assets" / "metadata.json").write_text("{")
    _refused(copy, "damaged")
    (copy / "assets" / "metadata.json").write_text("[]")
    _refused(copy, "damaged")


def test_a_missing_signature_is_refused_with_the_names_there_are(written):
    _refused("paint", "score.*signature=paint", load.SavedModel(written).signature)


def test_weights_cut_short_are_refused_in_one_line(copy):
    data = copy / "variables" / "variables.data-00000-of-00001"
    os.truncate(data, 200)
    _refused(copy, "is damaged", load_model)
    _refused(copy, "damaged.*export it again", _score)


def test_a_graph_whose_parts_do_not_fit_is_refused_in_one_line(written, monkeypatch):
    def fail(_):
        raise KeyError("while/Prod_1:output:0")

    monkeypatch.setattr("tensorflow.saved_model.load", fail)
    _refused(written, "damaged.*Prod_1.*export it again", _score)


def _score(path):
    return load.SavedModel(path).signature("score")


def test_damaged_weights_are_refused_in_one_line(copy):
    data = copy / "variables" / "variables.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[200] ^= 255
    data.write_bytes(bytes(content))
    _refused(copy, "damaged", load_model)
    os.remove(copy / "variables" / "variables.index")
    _refused(copy, "cannot be read", load_model)
    _refused(copy, "damaged", _score)


def test_a_palette_that_is_not_the_models_is_refused(copy):
    path = copy / "assets" / "palette.npy"
    Palette(Palette.grey(4).centroids[::-1]).save(str(path))
    _refused(copy, "palette is not the one")
    path.unlink()
    _refused(copy, "palette")


def test_any_weight_not_a_number_is_still_a_weight(tmp_path):
    model = ImageGPT(image_size=(2, 2), vocabulary_size=4, num_layers=1, hidden_dim=4, num_heads=1)
    model.sos.assign([np.nan, 1, 2, 3])
    path = write_pretrained(model, Palette.grey(4), str(tmp_path / "1"), objective={}, data=None)
    np.testing.assert_array_equal(load_model(path)[0].sos, model.sos)
