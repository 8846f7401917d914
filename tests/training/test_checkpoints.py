"""Tests of checkpoints: the state to resume from, and the best weights."""

import errno

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.training.checkpoints import Checkpoints


def new_state(directory, seed=0):
    keras.utils.set_random_seed(seed)
    model = ImageGPT(image_size=(2, 2), vocabulary_size=3, num_layers=2, hidden_dim=4, num_heads=2)
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    return model, optimizer, new_checkpoints(directory, model, optimizer)


def new_checkpoints(directory, model, optimizer, **options):
    variables = (
        {variable.path.split("/", 1)[1]: variable.value for variable in owner.variables}
        for owner in (model, optimizer)
    )
    return Checkpoints(str(directory), *variables, keep=2, **options)


def fill(model, optimizer, value):
    for variable in (*model.weights, *optimizer.variables):
        variable.assign(np.full(variable.shape, value))


def values(*owners):
    variables = [v for owner in owners for v in getattr(owner, "weights", None) or owner.variables]
    return {float(x) for variable in variables for x in np.unique(variable.numpy())}


def test_every_weight_and_every_optimizer_variable_is_restored(tmp_path):
    model, optimizer, checkpoints = new_state(tmp_path)
    fill(model, optimizer, 3)
    checkpoints.save(7)
    model, optimizer, checkpoints = new_state(tmp_path, seed=1)
    assert checkpoints.restore_newest() == 7
    assert values(model) == {3.0}
    assert {float(np.max(v.numpy())) for v in optimizer.variables} == {3.0}


def test_best_weights_are_restored(tmp_path):
    model, optimizer, checkpoints = new_state(tmp_path)
    for step, nats in ((1, 2.0), (2, 1.0), (3, 1.5)):
        fill(model, optimizer, step)
        checkpoints.keep_if_best(step, nats)
        checkpoints.save(step)
    assert checkpoints.restore_best() == 2
    assert values(model) == {2.0}
    model, optimizer, resumed = new_state(tmp_path, seed=1)
    assert resumed.restore_newest() == 3
    assert (resumed.best_step, resumed.best_loss) == (2, 1.0)
    assert resumed.restore_best() == 2 and values(model) == {2.0}


def best_files(directory):
    return sorted(path.stem for path in (directory / "best").glob("best-*.index"))


def test_best_weights_that_a_checkpoint_names_are_kept(tmp_path):
    model, optimizer, checkpoints = new_state(tmp_path)
    for step in range(1, 10):  # nine evaluations, then killed
        fill(model, optimizer, step)
        checkpoints.keep_if_best(step, 2 - step / 10)
        if step in (1, 5):
            checkpoints.save(step)
    assert best_files(tmp_path) == ["best-1", "best-5", "best-9"]
    model, _, resumed = new_state(tmp_path, seed=1)
    assert resumed.restore_newest() == resumed.best_step == 5
    assert resumed.restore_best() == 5 and values(model) == {5.0}


def test_best_weights_that_no_checkpoint_names_are_removed(tmp_path):
    _, _, checkpoints = new_state(tmp_path)
    for step in (1, 2, 3):
        checkpoints.keep_if_best(step, 1 / step)
        checkpoints.save(step)
    assert best_files(tmp_path) == ["best-2", "best-3"]  # two checkpoints are kept
    checkpoints.keep_if_best(4, 1 / 4)
    _, _, resumed = new_state(tmp_path)  # killed before a checkpoint named the fourth
    resumed.restore_newest()
    resumed.save(4)
    resumed.save(5)
    assert best_files(tmp_path) == ["best-3"]
    assert all(path.name.startswith("best-3.") for path in (tmp_path / "best").glob("best-*"))


def test_best_weights_survive_a_full_disk(tmp_path, monkeypatch):
    model, optimizer, checkpoints = new_state(tmp_path)
    fill(model, optimizer, 1)
    checkpoints.keep_if_best(1, 1.0)

    def full_disk(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", full_disk)
    with pytest.raises(OSError):
        checkpoints.keep_if_best(2, 0.5)
    assert checkpoints.best_step == 1
    assert checkpoints.restore_best() == 1 and values(model) == {1.0}


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    _, _, checkpoints = new_state(tmp_path)
    for step in range(1, 5):
        checkpoints.save(step)
    assert {path.name for path in tmp_path.glob("ckpt-*.index")} == {"ckpt-3.index", "ckpt-4.index"}


def test_run_without_checkpoints_starts_at_step_zero(tmp_path):
    assert new_state(tmp_path)[2].restore_newest() == 0


def test_run_with_damaged_checkpoints_only_is_refused(tmp_path):
    _, _, checkpoints = new_state(tmp_path)
    checkpoints.save(1)
    next(tmp_path.glob("ckpt-1.data*")).write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        new_state(tmp_path)[2].restore_newest()


def test_checkpoint_of_another_model_is_refused(tmp_path):
    _, _, checkpoints = new_state(tmp_path)
    checkpoints.save(1)
    model = ImageGPT(image_size=(2, 2), vocabulary_size=3, num_layers=3, hidden_dim=4, num_heads=2)
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    with pytest.raises(InputError, match="damaged"):
        new_checkpoints(tmp_path, model, optimizer).restore_newest()


@pytest.mark.parametrize("name", ["lr[0.1]", "a*b", "what?", "back\\slash", "[ab]/run"])
def test_folders_with_pattern_characters_work(tmp_path, name):
    model, optimizer, checkpoints = new_state(tmp_path / name)
    for step in (1, 2, 3):
        fill(model, optimizer, step)
        checkpoints.keep_if_best(step, 1 / step)
        checkpoints.save(step)
    kept = {path.name for path in (tmp_path / name).iterdir() if path.suffix == ".index"}
    assert kept == {"ckpt-2.index", "ckpt-3.index"}
    model, _, resumed = new_state(tmp_path / name, seed=1)
    assert resumed.restore_newest() == 3 and values(model) == {3.0}
    assert resumed.restore_best() == 3
    next(path for path in (tmp_path / name).iterdir() if "3.data" in path.name).write_bytes(b"")
    assert new_state(tmp_path / name)[2].restore_newest() == 2


def test_damaged_checkpoint_is_named_by_the_path_of_the_user(tmp_path, caplog):
    folder = tmp_path / "lr[0.1]"
    _, _, checkpoints = new_state(folder)
    checkpoints.save(1)
    checkpoints.save(2)
    (folder / "ckpt-2.index").write_bytes(b"")
    assert new_state(folder)[2].restore_newest() == 1
    assert f"checkpoint {folder}/ckpt-2 is damaged" in caplog.text


def test_checkpoint_that_is_damaged_for_another_process_is_passed_over(tmp_path):
    model, optimizer, checkpoints = new_state(tmp_path)
    for step in (1, 2):
        fill(model, optimizer, step)
        checkpoints.save(step)
    damaged_elsewhere = iter([True, False])
    checkpoints = new_checkpoints(
        tmp_path, model, optimizer, any_worker=lambda here: here or next(damaged_elsewhere)
    )
    assert checkpoints.restore_newest() == 1
    assert values(model) == {1.0}
