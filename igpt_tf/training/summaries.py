"""What a run records: TensorBoard events and `metrics.jsonl`."""

import errno
import json
import os
import time

import numpy as np
import tensorflow as tf

from igpt_tf import files
from igpt_tf.errors import InputError


class Summaries:
    """Writes numbers, images and the configuration of one run.

    Args:
        folder: The workdir's `summaries` folder, with one sub-folder per split.
        metrics_path: The workdir's `metrics.jsonl`.
        first_step: Step from which the run starts or resumes. What was written for later steps is
            removed from `metrics.jsonl` and hidden by TensorBoard, because they are taken again.
    """

    def __init__(self, folder: str, metrics_path: str, first_step: int):
        self._writers = {
            split: tf.summary.create_file_writer(os.path.join(folder, split))
            for split in ("train", "valid")
        }
        for writer in self._writers.values():
            _hide_events_from(writer, first_step + 1)
        remove_lines_after(metrics_path, first_step)
        self._metrics = open(metrics_path, "ab", buffering=0)

    def scalars(self, step: int, split: str, **values: float) -> None:
        """Writes numbers to TensorBoard, and as one line to `metrics.jsonl`."""
        _append(self._metrics, _line(step, split, values))
        writer = self._writers["train" if split == "train" else "valid"]
        with writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        writer.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows an image uint8[H,W,3] in TensorBoard."""
        with self._writers["valid"].as_default(step):
            tf.summary.image(name, image[None])
        self._writers["valid"].flush()

    def text(self, name: str, markdown: str) -> None:
        """Shows a text in TensorBoard."""
        with self._writers["train"].as_default(0):
            tf.summary.text(name, markdown)
        self._writers["train"].flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()
        self._metrics.close()


def _hide_events_from(writer: tf.summary.SummaryWriter, step: int) -> None:
    """Makes TensorBoard ignore what earlier files contain for `step` and later steps.

    TensorBoard takes the first such event of a folder for the start of the run, each further one
    for that of a resumed run.
    """
    start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(wall_time=time.time(), step=step, session_log=start)
    tf.raw_ops.ImportEvent(writer=writer._resource, event=event.SerializeToString())


def append_test(metrics_path: str, step: int, **values: float) -> None:
    """Appends the line of the test split, measured once with the weights of `step`."""
    with open(metrics_path, "ab", buffering=0) as file:
        _append(file, _line(step, "test", values))


def _line(step: int, split: str, values: dict[str, float]) -> str:
    rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
    return json.dumps({"step": step, "split": split, **rounded}) + "\n"


def _append(file, line: str) -> None:
    """Appends a line as a whole or, on a full disk, not at all."""
    end = os.fstat(file.fileno()).st_size
    if file.write(line.encode()) < len(line):
        file.truncate(end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove_lines_after(metrics_path: str, step: int) -> None:
    """Removes the lines of `metrics.jsonl` that a resumed run writes again.

    Those are the lines of steps after `step`, of the test split, which end a run, and lines that a
    crash cut short.

    Raises:
        InputError: The file is not text; it is left as it is.
    """
    if not os.path.exists(metrics_path):
        return
    try:
        with open(metrics_path, encoding="utf-8") as file:
            lines = file.readlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"the metrics of the run are damaged ({getattr(error, 'strerror', None) or error}); "
            "move the file away and start again: the run continues with a new one. "
            f"Received: {metrics_path}"
        ) from None
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        files.write_text(metrics_path, "".join(kept))


def _step_of(line: str) -> float:
    """Step of a line to keep; infinity for others."""
    try:
        parsed = json.loads(line)
        is_kept = line.endswith("\n") and parsed.get("split") != "test"
        return float(parsed["step"]) if is_kept else float("inf")
    except (ValueError, KeyError, TypeError, AttributeError):
        return float("inf")
