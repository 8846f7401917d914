"""What every kind of training shares: its folder, its resumption, its steps, its precision.

What is evaluated and drawn beside the steps is the caller's affair.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf
from absl import logging

from igpt_tf import config, runtime
from igpt_tf.errors import InputError
from igpt_tf.palette import Palette
from igpt_tf.training import loop, strategies
from igpt_tf.training.actions import Intervals, Report
from igpt_tf.training.checkpoints import Checkpoints
from igpt_tf.training.profiling import Profile
from igpt_tf.training.rewinds import NonFiniteLoss, Rewinds
from igpt_tf.training.summaries import Summaries
from igpt_tf.training.trainer import Trainer
from igpt_tf.training.workdir import (
    Workdir,
    naming_a_full_disk,
    refuse_another,
    refuse_unwritable,
)


def open_workdir(
    workdir: str, strategy: tf.distribute.Strategy, palette: Palette
) -> Workdir | None:
    """The folder, claimed for the configuration in force; None, said aloud, if it is finished.

    Raises:
        InputError: See `Workdir`.
    """
    folder = Workdir(workdir, strategies.worker_index(strategy))
    with naming_a_full_disk(workdir):
        folder.claim(config.operative_text(), palette)
    if folder.result():
        print(f"this run is finished: {os.path.join(workdir, 'result.json')}")
        return None
    if folder.is_chief:
        with naming_a_full_disk(workdir):
            runtime.append_environment(workdir)
    return folder


def check_workdir(workdir: str | None, palette: Palette) -> None:
    """Raises: InputError where `open_workdir` would, as far as it shows without writing."""
    if workdir:
        refuse_unwritable(workdir)
        is_finished = os.path.exists(os.path.join(workdir, "result.json"))
        refuse_another(workdir, config.operative_text(), palette, is_finished=is_finished)


@contextlib.contextmanager
def guarded(workdir: str, strategy: tf.distribute.Strategy):
    """The strategy's scope, in which a full disk and a lost worker are named in one line."""
    with naming_a_full_disk(workdir), strategies.naming_a_lost_worker(strategy), strategy.scope():
        yield


def take_steps(
    folder: Workdir,
    trainer: Trainer,
    batches: Callable[[int, int], Iterator[dict]],
    intervals: Intervals,
    *,
    num_steps: int,
    seed: int,
    actions: Callable[[Checkpoints, Summaries], list[loop.Periodic]],
    patience: int = 0,
    num_rewinds: int = 0,
    title: str = "pretrain",
    measure: str = "nats_per_token",
) -> Checkpoints:
    """Takes the steps that are left, with all that is done beside them.

    Args:
        folder: The run's files; its newest checkpoint is where the steps begin.
        trainer: Takes them.
        batches: (step, seed) -> the batches of that step and after.
        intervals: Periods of the report and the checkpoints.
        num_steps: Length of the run.
        seed: Of the batches.
        actions: Makes what is due between the report and the checkpoint, such as an evaluation.
        patience: The run ends once so many steps brought no better held-out result; 0 is never.
        num_rewinds: How often a loss that became non-finite sends the run back to its newest
            checkpoint, to go on with other images up to the step where it was noticed.
        title: Name of the progress bar.
        measure: What the trainer's losses are called in `metrics.jsonl`.

    Returns:
        The checkpoints, with the best held-out step.

    Raises:
        NonFiniteLoss: Once there were `num_rewinds` rewinds.
    """
    checkpoints = Checkpoints(
        os.path.join(folder.run, "checkpoints"),
        trainer.model,
        trainer.optimizer,
        keep=intervals.keep_checkpoints,
        written_to=folder.file("checkpoints"),
    )
    rewinds = Rewinds(os.path.join(folder.run, "rewinds.json"), num_rewinds, writes=folder.is_chief)

    def attempt(first_step, stop):
        summaries = Summaries(
            folder.file("summaries"), folder.file("metrics.jsonl"), first_step=first_step
        )
        with contextlib.closing(summaries):
            summaries.text("config", config.operative_markdown())
            go_on(first_step, stop, summaries)

    def go_on(first_step, stop, summaries):
        report = Report(
            summaries,
            trainer,
            first_step=first_step,
            num_steps=num_steps,
            title=title,
            measure=measure,
        )
        save, stop_if_stale = _saving(report, trainer, checkpoints, patience)
        stride = trainer.steps_per_execution
        profile = Profile(folder.file("summaries"), intervals.profile_steps, stride=stride)
        with contextlib.closing(report), contextlib.closing(profile):
            stop_if_stale(first_step)  # a run that had ended early is over
            profile(first_step)
            loop.run(
                lambda batch, waited: report.add(trainer.train_step(batch), waited),
                _chained(batches, rewinds.segments(seed, first_step, num_steps), trainer),
                first_step=first_step,
                num_steps=num_steps,
                actions=[
                    loop.Periodic(stride, profile),
                    loop.Periodic(intervals.log_every, report),
                    *_untimed(report, actions(checkpoints, summaries)),
                    *_untimed(report, [loop.Periodic(intervals.checkpoint_every, save)]),
                    *_untimed(report, [loop.Periodic(intervals.evaluate_every, stop_if_stale)]),
                ],
                save=save,
                stop=stop,
                stride=stride,
            )

    first_step = checkpoints.restore_newest()
    strategies.wait_for_all(trainer.strategy)  # nobody writes before everybody has read
    if num_rewinds and not first_step:
        checkpoints.save(0)  # a place to go back to
    with loop.Stop(strategies.agreement(trainer.strategy)) as stop:
        while True:
            try:
                attempt(first_step, stop)
                break
            except _Enough:
                if stop.told():
                    stop.leave()
                break
            except NonFiniteLoss as error:
                first_step = checkpoints.restore_newest()
                rewinds.add(first_step, error)
                logging.warning("%s", f"back to step {first_step}, with other images: {error}")
                if stop.told():  # in the step that was lost
                    stop.leave()
    strategies.wait_for_all(trainer.strategy)  # the chief's last files are whole
    return checkpoints


def _saving(report: Report, trainer: Trainer, checkpoints: Checkpoints, patience: int):
    """Two actions: save a state that is sound, and end a run that does not get better."""

    def save(step):
        report.check_finite(step)
        if not trainer.weights_are_finite():
            raise NonFiniteLoss(step - 1, step)
        checkpoints.save(step)

    def stop_if_stale(step):
        if _is_stale(checkpoints, step, patience):
            save(step)
            raise _Enough

    return save, stop_if_stale


def _untimed(report: Report, actions: list[loop.Periodic]) -> list[loop.Periodic]:
    return [loop.Periodic(one.every, report.excluding(one.action)) for one in actions]


def _chained(batches, segments, trainer) -> Iterator[dict]:
    """The batches of one segment after the other."""
    for first_step, end_step, seed in segments:
        calls = (end_step - first_step) // trainer.steps_per_execution
        yield from itertools.islice(batches(first_step, seed), calls)


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
    return quantize_on == "device" or (quantize_on == "auto" and runtime.has_accelerator())


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises: InputError unless `value` of the gin name `name` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} is one of {', '.join(choices)}. Received: {value!r}")
