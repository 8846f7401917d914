"""Checkpoints: the newest states to resume from, and the weights of the best held-out step."""

import contextlib
import glob
import os
import shutil
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from igpt_tf import files
from igpt_tf.errors import InputError

# Raised by TensorFlow for a file that is missing, cut short, altered or of another model.
_DAMAGED = (tf.errors.OpError, ValueError, AssertionError, IndexError, RuntimeError)


def _new_variable(value) -> tf.Variable:
    return tf.Variable(value, trainable=False)


class Checkpoints:
    """Saves and restores weights, optimizer state, step and the best held-out step.

    Files: `ckpt-STEP.*`, the newest `keep`; `best/best-STEP.*`, the weights of the best held-out
    step, and of those that were the best when the kept checkpoints were saved.

    Args:
        folder: The workdir's `checkpoints` folder, from which states are restored.
        weights: Variables of the model by name.
        optimizer_state: Variables of the optimizer by name.
        keep: Number of the newest checkpoints that are kept.
        write_to: Folder to write to, if it is another: workers other than the chief must save too,
            but into a folder of their own.
        removes_old: Whether this process removes checkpoints that are no longer needed. Of several
            processes that write shards into one folder, one does.
        new_variable: Function value -> variable, for the steps and the loss in the checkpoint.
        any_worker: Function (damaged here) -> damaged for any process. All processes must agree on
            the checkpoint to resume from.
        part_to_check: (i, n): before a checkpoint is restored, this process reads the i-th of n
            parts of it. DTensor reports damage too late, with an error that ends the program.

    Attributes:
        best_step: Step with the lowest held-out loss so far; 0 before the first evaluation.
        best_loss: Held-out loss at `best_step`: nats per token, or the share of wrong classes.
    """

    def __init__(
        self,
        folder: str,
        weights: dict[str, tf.Variable],
        optimizer_state: dict[str, tf.Variable],
        *,
        keep: int,
        write_to: str | None = None,
        removes_old: bool = True,
        new_variable: Callable = _new_variable,
        any_worker: Callable[[bool], bool] = bool,
        part_to_check: tuple[int, int] | None = None,
    ):
        self.folder = folder
        self._keep = keep
        self._removes_old = removes_old
        self._any_worker = any_worker
        self._part_to_check = part_to_check
        os.makedirs(os.path.join(write_to or folder, "best"), exist_ok=True)
        # TensorFlow takes the prefix of a checkpoint for a pattern.
        self._read_from = files.path_without_patterns(folder)
        self._write_to = files.path_without_patterns(write_to or folder)
        if removes_old:
            _remove_unfinished(self._write_to)
        self._step = new_variable(np.int64(0))
        self._best_step = new_variable(np.int64(0))
        self._best_loss = new_variable(np.float64("inf"))
        self._state = tf.train.Checkpoint(
            weights=weights,
            optimizer=optimizer_state,
            step=self._step,
            best_step=self._best_step,
            best_loss=self._best_loss,
        )
        self._weights = tf.train.Checkpoint(weights=weights)

    @property
    def best_step(self) -> int:
        return int(self._best_step.numpy())

    @property
    def best_loss(self) -> float:
        return float(self._best_loss.numpy())

    def save(self, step: int) -> None:
        """Writes `ckpt-STEP`, then removes the oldest checkpoints."""
        self._step.assign(step)
        self._state.write(os.path.join(self._write_to, f"ckpt-{step}"))
        if self._removes_old:
            for path in _paths(self._write_to)[: -self._keep]:
                _remove(path)
            self._remove_old_best()

    def restore_newest(self) -> int:
        """Restores the newest undamaged checkpoint and returns its step; 0 if there is none.

        A damaged checkpoint is named in a warning, and the one before it is used.

        Raises:
            InputError: There are checkpoints, but none could be restored.
        """
        paths = _paths(self._read_from)
        for path in reversed(paths):
            if self._restore(self._state, path):
                return int(self._step.numpy())
            logging.warning("checkpoint %s is damaged; trying the one before", self._shown(path))
        if paths:
            raise InputError(
                "every checkpoint is damaged; remove the folder to start from the beginning. "
                f"Received: {self.folder}"
            )
        return 0

    def keep_if_best(self, step: int, loss: float) -> None:
        """Writes the weights as `best-STEP` if the held-out loss is the lowest so far."""
        if loss < self.best_loss:
            # The file is written before it is named, and old ones are removed last, so that the
            # weights that a checkpoint names are always on disk.
            self._weights.write(_best_path(self._write_to, step))
            self._best_step.assign(step)
            self._best_loss.assign(loss)
            if self._removes_old:
                self._remove_old_best()

    def restore_best(self) -> int:
        """Loads the best held-out weights into the model and returns their step.

        Raises:
            InputError: The file is damaged.
        """
        path = _best_path(self._read_from, self.best_step)
        if not self._restore(self._weights, path):
            raise InputError(
                "the best held-out weights are damaged; the same command with "
                "--gin_param='train.export=\"last\"' exports the last of a pretraining, a "
                f"fine-tuning starts again in a new workdir. Received: {self._shown(path)}"
            )
        return self.best_step

    def _restore(self, checkpoint: tf.train.Checkpoint, path: str) -> bool:
        """Whether every object of `checkpoint` was restored from `path`, in every process."""
        if self._part_to_check and self._any_worker(not _is_readable(path, *self._part_to_check)):
            return False
        return not self._any_worker(not _restore(checkpoint, path))

    def _remove_old_best(self) -> None:
        """Removes best weights that neither a checkpoint nor the run's current state names."""
        named = _named_best_steps(self._write_to) | {self.best_step}
        for path in _paths(os.path.join(self._write_to, "best"), "best"):
            if _step_of(path) not in named:
                _remove(path)

    def _shown(self, path: str) -> str:
        """A path as the user knows it."""
        return os.path.join(self.folder, os.path.relpath(path, self._read_from))


def newest_step(folder: str) -> int | None:
    """Step of the newest checkpoint in a folder by the files' names; None if there is none."""
    paths = _paths(folder)
    return _step_of(paths[-1]) if paths else None


def _best_path(folder: str, step: int | str) -> str:
    return os.path.join(folder, "best", f"best-{step}")


def _named_best_steps(folder: str) -> set[int]:
    """Best held-out steps named by the undamaged checkpoints in a folder."""
    steps = set()
    for path in _paths(folder):
        with contextlib.suppress(*_DAMAGED):
            reader = tf.train.load_checkpoint(path)
            steps.add(int(reader.get_tensor("best_step/.ATTRIBUTES/VARIABLE_VALUE")))
    return steps


def _remove_unfinished(folder: str) -> None:
    """Removes what a save that was killed, or ran out of space, left behind."""
    for parent in (folder, os.path.join(folder, "best")):
        for path in glob.glob(os.path.join(glob.escape(parent), "*_temp*")):
            shutil.rmtree(path, ignore_errors=True)


def _paths(folder: str, name: str = "ckpt") -> list[str]:
    """Prefixes NAME-STEP of the checkpoints in a folder, oldest first."""
    found = glob.glob(os.path.join(glob.escape(folder), f"{name}-*.index"))
    return sorted((path.removesuffix(".index") for path in found), key=_step_of)


def _remove(path: str) -> None:
    """Removes a checkpoint. The index goes first: without it the rest is ignored."""
    os.remove(f"{path}.index")
    for part in glob.glob(glob.escape(path) + ".data-*"):
        os.remove(part)


def _step_of(path: str) -> int:
    """ckpt-STEP -> STEP; -1 for a file of another name."""
    step = path.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def _is_readable(path: str, part: int, num_parts: int) -> bool:
    """Whether the checksums of a part of a checkpoint's tensors are right."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in sorted(reader.get_variable_to_shape_map())[part::num_parts]:
            reader.get_tensor(name)
    except _DAMAGED:
        return False
    return True


def _restore(checkpoint: tf.train.Checkpoint, path: str) -> bool:
    """Whether every object of `checkpoint` was restored from `path`."""
    try:
        status = checkpoint.read(path)
        status.assert_existing_objects_matched()
        status.assert_consumed()
    except _DAMAGED:
        return False
    return True
