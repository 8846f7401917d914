"""What every kind of training shares: its folder, its resumption, its steps, its precision.

What is evaluated and drawn beside the steps is the caller's affair.
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from igpt_tf import config
from igpt_tf.errors import InputError
from igpt_tf.training import loop, strategies
from igpt_tf.training.actions import Cadence, Report
from igpt_tf.training.checkpoints import Checkpoints
from igpt_tf.training.summaries import Summaries
from igpt_tf.training.trainer import Trainer
from igpt_tf.training.workdir import Workdir, naming_a_full_disk


def open_workdir(workdir: str, strategy: tf.distribute.Strategy) -> Workdir | None:
    """The folder, claimed for the configuration in force; None, said aloud, if it is finished.

    Raises:
        InputError: See `Workdir`.
    """
    folder = Workdir(workdir, strategies.worker_index(strategy))
    folder.claim(config.operative_text())
    if folder.result():
        print(f"this run is finished: {os.path.join(workdir, 'result.json')}")
        return None
    return folder


@contextlib.contextmanager
def guarded(workdir: str, strategy: tf.distribute.Strategy):
    """The strategy's scope, in which a full disk and a lost worker are named in one line."""
    with naming_a_full_disk(workdir), strategies.naming_a_lost_worker(strategy), strategy.scope():
        yield


def take_steps(
    folder: Workdir,
    trainer: Trainer,
    batches: Callable[[int], Iterator[dict]],
    cadence: Cadence,
    *,
    num_steps: int,
    actions: Callable[[Checkpoints, Summaries], list[loop.Periodic]],
    patience: int = 0,
    title: str = "pretrain",
    measure: str = "nats_per_token",
) -> Checkpoints:
    """Takes the steps that are left, with all that is done beside them.

    Args:
        folder: The run's files; its newest checkpoint is where the steps begin.
        trainer: Takes them.
        batches: Step -> the batches of that step and after.
        cadence: Periods of the report and the checkpoints.
        num_steps: Length of the run.
        actions: Makes what is due between the report and the checkpoint, such as an evaluation.
        patience: The run ends once so many steps brought no better held-out result; 0 is never.
        title: Name of the progress bar.
        measure: What the trainer's losses are called in `metrics.jsonl`.

    Returns:
        The checkpoints, with the best held-out step.
    """
    checkpoints = Checkpoints(
        os.path.join(folder.run, "checkpoints"),
        trainer.model,
        trainer.optimizer,
        keep=cadence.keep_checkpoints,
        written_to=folder.file("checkpoints"),
    )
    first_step = checkpoints.restore_newest()
    strategies.wait_for_all(trainer.strategy)  # nobody writes before everybody has read
    summaries = Summaries(
        folder.file("summaries"), folder.file("metrics.jsonl"), first_step=first_step
    )
    summaries.text("config", config.operative_markdown())
    report = Report(
        summaries,
        batch_size=trainer.batch_size,
        first_step=first_step,
        num_steps=num_steps,
        title=title,
        measure=measure,
    )

    def save(step):
        report.check_finite(step)
        checkpoints.save(step)

    def stop_if_stale(step):
        if _is_stale(checkpoints, step, patience):
            save(step)
            raise _Enough

    due = [
        *actions(checkpoints, summaries),
        loop.Periodic(cadence.checkpoint_every, save),
        loop.Periodic(cadence.evaluate_every, stop_if_stale),
    ]
    with contextlib.closing(report), contextlib.suppress(_Enough):
        stop_if_stale(first_step)  # a run that had ended early is over
        loop.run(
            lambda batch, waited: report.add(trainer.train_step(batch), waited),
            batches(first_step),
            first_step=first_step,
            num_steps=num_steps,
            actions=[
                loop.Periodic(cadence.log_every, report),
                *(loop.Periodic(one.every, report.excluding(one.action)) for one in due),
            ],
            save=save,
        )
    strategies.wait_for_all(trainer.strategy)  # the chief's last files are whole
    return checkpoints


class _Enough(Exception):
    """The held-out result has stopped to improve."""


def _is_stale(checkpoints: Checkpoints, step: int, patience: int) -> bool:
    # Of the checkpoint's own state only, so that a resumed run ends where one left alone does.
    return bool(patience and checkpoints.best_step) and step - checkpoints.best_step >= patience


def in_float32(model: keras.Model, build: Callable[[], keras.Model]) -> keras.Model:
    """The model to serve: the same weights, computing in float32; `build` makes its like."""
    if model.compute_dtype == "float32":
        return model
    keras.config.set_dtype_policy("float32")
    served = build()
    served.set_weights(model.get_weights())
    return served


def set_precision(name: str, precision: str) -> None:
    """Sets Keras' precision. `name` is the gin name of the choice. Raises: InputError."""
    check_choice(name, precision, ("float32", "mixed_bfloat16"))
    keras.config.set_dtype_policy(precision)


def quantizes_on_device(name: str, quantize_on: str) -> bool:
    """Whether the palette is applied on the device; `name` as above. Raises: InputError."""
    check_choice(name, quantize_on, ("auto", "host", "device"))
    return quantize_on == "device" or (quantize_on == "auto" and strategies.has_accelerator())


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises: InputError unless `value` of the gin name `name` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} is one of {', '.join(choices)}. Received: {value!r}")
