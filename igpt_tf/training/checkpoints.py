"""The state on disk: the newest checkpoints to resume from, and the best held-out weights."""

import contextlib
import glob
import os
import re
import shutil

import keras
import tensorflow as tf
from absl import logging

from igpt_tf import runtime
from igpt_tf.errors import InputError
from igpt_tf.training.workdir import naming_a_damaged_file

# What TensorFlow raises on a file that is missing, cut short, altered or of another model.
_DAMAGED = (tf.errors.OpError, ValueError, AssertionError, IndexError, RuntimeError)


class Checkpoints:
    """Saves and restores model, optimizer, step and the best held-out step.

    Files: `ckpt-STEP.*`, the newest `keep`; `best/best-STEP.*`, the weights of the best held-out
    step, and of those that were the best when the kept checkpoints were written.

    Args:
        directory: The workdir's `checkpoints` folder, to restore from.
        written_to: Where to write, if not there: workers other than the chief must save too, but
            into a folder of their own.
        model: The model, built.
        optimizer: The optimizer, built.
        keep: How many of the newest checkpoints stay.

    Raises:
        InputError: A folder's list of its checkpoints is damaged.
    """

    def __init__(
        self,
        directory: str,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        keep: int,
        written_to: str | None = None,
    ):
        written_to = written_to or directory
        for folder in (directory, written_to, os.path.join(written_to, "best")):
            _check_list(folder)
        _remove_unfinished(written_to)
        self._directory, self._written_to = directory, written_to
        self._step = tf.Variable(0, dtype="int64", trainable=False)
        self._best_step = tf.Variable(0, dtype="int64", trainable=False)
        self._best_loss = tf.Variable(float("inf"), dtype="float64", trainable=False)
        weights = _by_path(model.weights)
        self._state = tf.train.Checkpoint(
            weights=weights,
            optimizer=_by_path(optimizer.variables),
            step=self._step,
            best_step=self._best_step,
            best_nats=self._best_loss,  # the name in the files
        )
        self._newest = tf.train.CheckpointManager(
            self._state, written_to, max_to_keep=keep, checkpoint_name="ckpt"
        )
        self._weights = tf.train.Checkpoint(weights=weights)
        _ = self._weights.save_counter  # makes it, because `restore` looks for it in the files

    @property
    def best_step(self) -> int:
        """The step with the lowest held-out loss so far; 0 before the first evaluation."""
        return int(self._best_step.numpy())

    @property
    def best_loss(self) -> float:
        """The held-out loss at `best_step`: nats per token, or the share of wrong classes."""
        return float(self._best_loss.numpy())

    def save(self, step: int) -> None:
        """Writes `ckpt-STEP`."""
        self._step.assign(step)
        self._newest.save(checkpoint_number=step)
        self._remove_outdone()

    def restore_newest(self) -> int:
        """Restores the newest whole checkpoint and returns its step; 0 if there is none.

        A damaged checkpoint is named in a warning and the one before is used.

        Raises:
            InputError: There are checkpoints and all are damaged.
        """
        paths = _paths(self._directory)
        for path in reversed(paths):
            if _restored(self._state, path):
                return int(self._step.numpy())
            logging.warning("checkpoint %s is damaged; trying the one before", path)
        if paths:
            raise InputError(
                "every checkpoint is damaged; remove the folder to start anew. "
                f"Received: {self._directory}"
            )
        return 0

    def note_heldout(self, step: int, loss: float) -> None:
        """Keeps the weights as `best-STEP` if the held-out loss is the lowest so far."""
        if loss < self.best_loss:
            # Written before it is named, and others removed last: at every moment the weights that
            # a checkpoint names are on disk.
            self._weights.write(_best_path(self._written_to, step))
            self._best_step.assign(step)
            self._best_loss.assign(loss)
            self._remove_outdone()

    def restore_best(self) -> int:
        """Loads the best held-out weights into the model and returns their step.

        Raises:
            InputError: The file is damaged.
        """
        path = _best_path(self._directory, self.best_step)
        if not _restored(self._weights, path):
            raise InputError(
                "the best held-out weights are damaged; the same command with "
                "--gin_param='train.export=\"last\"' exports the last of a pretraining, a "
                f"fine-tuning starts again in a new workdir. Received: {path}"
            )
        return self.best_step

    def _remove_outdone(self) -> None:
        """Removes best weights that neither a checkpoint nor the run as it stands names."""
        named = _named_best_steps(self._written_to) | {self.best_step}
        for path in glob.glob(glob.escape(_best_path(self._written_to, "")) + "*"):
            step = re.search(r"best-(\d+)\.(index|data-\S+)$", path)
            if step and int(step[1]) not in named:
                os.remove(path)


def _best_path(directory: str, step: int | str) -> str:
    return os.path.join(directory, "best", f"best-{step}")


def _named_best_steps(directory: str) -> set[int]:
    """The best held-out steps of the checkpoints in a folder; of the damaged ones none is known."""
    steps = set()
    for path in _paths(directory):
        with contextlib.suppress(*_DAMAGED):
            reader = tf.train.load_checkpoint(path)
            steps.add(int(reader.get_tensor("best_step/.ATTRIBUTES/VARIABLE_VALUE")))
    return steps


def _remove_unfinished(directory: str) -> None:
    """Removes what a save left behind that was killed, or found no room."""
    for folder in (directory, os.path.join(directory, "best")):
        for path in glob.glob(os.path.join(glob.escape(folder), "*_temp*")):
            shutil.rmtree(path, ignore_errors=True)


def _check_list(directory: str) -> None:
    """Raises InputError if the file that lists a folder's checkpoints is damaged.

    TensorFlow would pass over some damage, and the run begin anew.
    """
    path = os.path.join(directory, "checkpoint")
    if not os.path.exists(path):
        return
    mend = "remove it and start again: the checkpoints are found by their names"
    with naming_a_damaged_file(path, mend), runtime.suppress_stderr():
        if tf.train.get_checkpoint_state(directory) is None:
            raise ValueError("not a list of checkpoints")


def _paths(directory: str) -> list[str]:
    """The checkpoints in a folder, listed or found by their names, oldest first."""
    state = tf.train.get_checkpoint_state(directory)
    listed = state.all_model_checkpoint_paths if state else ()
    found = glob.glob(os.path.join(glob.escape(directory), "ckpt-*.index"))
    return sorted({*listed, *(path.removesuffix(".index") for path in found)}, key=_step_of)


def _step_of(path: str) -> int:
    """ckpt-STEP -> STEP; -1 for a file of another name."""
    step = path.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def _by_path(variables) -> dict[str, tf.Variable]:
    """The variables by name, below the model's or optimizer's own.

    By name, because `tf.train.Checkpoint` of a Keras model passes over layers held in a list.
    """
    return {variable.path.split("/", 1)[1]: variable.value for variable in variables}


def _restored(checkpoint: tf.train.Checkpoint, path: str) -> bool:
    """Whether every object of `checkpoint` was restored from `path`."""
    try:
        status = checkpoint.restore(path)
        status.assert_existing_objects_matched()
        status.assert_consumed()
    except _DAMAGED:
        return False
    return True
