"""What a run records: TensorBoard events and `metrics.jsonl`."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from igpt_tf import files
from igpt_tf.errors import InputError

# Name in `metrics.jsonl` -> (tag, description in Markdown) in TensorBoard, which groups tags by
# what precedes the slash. Other names are their own tags.
TAGS = {
    "nats_per_token": (
        "loss/nats_per_token",
        "Mean negative log-likelihood per token, in nats; of masked models per masked token. "
        "`train`: mean of the batches since the last point. `valid`: of the held-out images. "
        "Runs `valid_baseline_*`: held-out loss of predictors that ignore the rest of the image.",
    ),
    "loss": ("loss/objective", "Loss that fine-tuning minimises, in nats."),
    "class_nats": ("loss/class_nats", "Held-out cross-entropy of the classes, in nats per image."),
    "accuracy": ("classification/accuracy", "Held-out accuracy of the classifier."),
    "images_per_second": (
        "speed/images_per_second",
        "Training images per second, over all devices; evaluations and checkpoints do not count.",
    ),
    "tokens_per_second": ("speed/tokens_per_second", "Images per second times tokens per image."),
    "model_flops_utilization": (
        "speed/model_flops_utilization",
        "Floating-point operations that the model needs per second, without those of `remat`, as a "
        "fraction of the devices' peak. Only on GPUs whose peak is known.",
    ),
    "data_wait": (
        "speed/data_wait",
        "Fraction of the time in which the devices wait for images; near 0 if loading keeps up.",
    ),
    "peak_memory_gb": (
        "memory/peak_gb",
        "Highest memory use so far, in GB: of the fullest GPU, without one of the process.",
    ),
    "learning_rate": ("optimizer/learning_rate", "Learning rate of the next step."),
    "gradient_norm": (
        "optimizer/gradient_norm",
        "Global norm of the last step's gradient, before clipping. On several devices only with "
        "`step_options.clip_norm`, which computes it anyway.",
    ),
    "probe_accuracy": (
        "probe/accuracy",
        "Held-out accuracy of ridge regression on the features of the best layer.",
    ),
    "probe_layer": (
        "probe/layer",
        "Layer with the best accuracy: 0 is the embedding, the last one the final norm.",
    ),
}
_LAYER = "Held-out accuracy of ridge regression on the features of this layer."


class Summaries:
    """Writes numbers, images and the configuration of one run.

    Args:
        folder: The workdir's `summaries` folder, with one sub-folder per split.
        metrics_path: The workdir's `metrics.jsonl`.
        first_step: Step from which the run starts or resumes. What was written for later steps is
            removed from `metrics.jsonl` and hidden by TensorBoard, because they are taken again.
    """

    def __init__(self, folder: str, metrics_path: str, first_step: int):
        self._folder = folder
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
                _write_scalar(name, value)
        writer.flush()

    def layer_accuracies(self, step: int, accuracies: Sequence[float]) -> None:
        """Shows the probe's accuracy of each layer in TensorBoard only."""
        with self._writers["valid"].as_default(step):
            for layer, value in enumerate(accuracies):
                tf.summary.scalar(f"probe_layers/layer_{layer:02}", value, description=_LAYER)
        self._writers["valid"].flush()

    def baseline(self, name: str, nats_per_token: float, last_step: int) -> None:
        """Shows a constant line beside the losses in TensorBoard, as a run of its own."""
        with self._other_writer(f"valid_baseline_{name}"):
            for step in (0, last_step):
                _write_scalar("nats_per_token", nats_per_token, step)

    def hyperparameters(self, values: dict[str, bool | int | float | str]) -> None:
        """Shows what runs differ in on TensorBoard's HParams page.

        They belong to the folder of all splits, so that the page finds the numbers of each.
        """
        with self._other_writer(""):
            hparams.hparams(values)

    @contextlib.contextmanager
    def _other_writer(self, subfolder: str):
        """Context that writes to a folder and hides what was written there before."""
        with contextlib.closing(
            tf.summary.create_file_writer(os.path.join(self._folder, subfolder))
        ) as writer:
            _hide_events_from(writer, 0)
            with writer.as_default():
                yield

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows an image uint8[H,W,3] in TensorBoard."""
        with self._writers["valid"].as_default(step):
            tf.summary.image(f"images/{name}", image[None])
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


def _write_scalar(name: str, value: float, step: int | None = None) -> None:
    tag, description = TAGS.get(name, (name, None))
    tf.summary.scalar(tag, value, step=step, description=description)


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
