"""What a run tells: TensorBoard events and `metrics.jsonl`."""

import errno
import json
import os
import time

import numpy as np
import tensorflow as tf

from igpt_tf.training.workdir import naming_a_damaged_file


class Summaries:
    """Writes numbers, pictures and the configuration of one run.

    Args:
        directory: The workdir's `summaries` folder; one sub-folder a split.
        metrics_path: The workdir's `metrics.jsonl`.
        first_step: The step the run (re)starts from; what was written for later steps is dropped
            from `metrics.jsonl` and not shown by TensorBoard, because those steps are taken again.
    """

    def __init__(self, directory: str, metrics_path: str, *, first_step: int):
        self._writers = {
            split: tf.summary.create_file_writer(os.path.join(directory, split))
            for split in ("train", "valid")
        }
        for writer in self._writers.values():
            _hide_events_from(writer, first_step + 1)
        drop_after(metrics_path, first_step)
        self._metrics = open(metrics_path, "ab", buffering=0)

    def scalars(self, step: int, split: str, **values: float) -> None:
        """Writes numbers to TensorBoard and one line to `metrics.jsonl`."""
        _append(self._metrics, _line(step, split, values))
        with self._writer(split).as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writer(split).flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows a picture uint8[H,W,3] in TensorBoard."""
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

    def _writer(self, split):
        return self._writers["train" if split == "train" else "valid"]


def _hide_events_from(writer: tf.summary.SummaryWriter, step: int) -> None:
    """Has TensorBoard drop what earlier files say about `step` and later ones.

    TensorBoard takes the first such event of a folder for a beginning, each further one for that of
    a run started again.
    """
    start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(wall_time=time.time(), step=step, session_log=start)
    tf.raw_ops.ImportEvent(writer=writer._resource, event=event.SerializeToString())


def note_test(metrics_path: str, step: int, **values: float) -> None:
    """Writes the line of the test part, measured once with the weights of `step`."""
    with open(metrics_path, "ab", buffering=0) as file:
        _append(file, _line(step, "test", values))


def _line(step: int, split: str, values: dict[str, float]) -> str:
    rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
    return json.dumps({"step": step, "split": split, **rounded}) + "\n"


def _append(file, line: str) -> None:
    """Writes a line whole or, on a full disk, not at all."""
    end = os.fstat(file.fileno()).st_size
    if file.write(line.encode()) < len(line):
        file.truncate(end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def drop_after(metrics_path: str, step: int) -> None:
    """Drops the lines of `metrics.jsonl` that a resumed run writes again, or cut short by a crash.

    Those are the ones later than `step`, and the test part's, which end a run.

    Raises:
        InputError: The file is no text; it is left as it is.
    """
    if not os.path.exists(metrics_path):
        return
    mend = "move it away and start again: the run goes on and begins another"
    with naming_a_damaged_file(metrics_path, mend), open(metrics_path, encoding="utf-8") as file:
        lines = [line for line in file if _step_of(line) <= step]
    with open(metrics_path + ".part", "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(metrics_path + ".part", metrics_path)


def _step_of(line: str) -> float:
    try:
        parsed = json.loads(line)
        is_kept = line.endswith("\n") and parsed.get("split") != "test"
        return float(parsed["step"]) if is_kept else float("inf")
    except (ValueError, KeyError, TypeError, AttributeError):
        return float("inf")
