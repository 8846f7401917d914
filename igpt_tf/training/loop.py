"""The training loop, of pretraining and fine-tuning alike."""

import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import numpy as np
from absl import logging

from igpt_tf import config
from igpt_tf.training import strategies
from igpt_tf.training.callbacks import Callback
from igpt_tf.training.rewinds import NonFiniteLoss, Rewinds
from igpt_tf.training.summaries import Summaries
from igpt_tf.training.trainer import Trainer
from igpt_tf.training.workdir import Workdir

_CALLS_PER_EXCHANGE = 10  # asking the other workers after every call would slow each


class TrainingLoop:
    """Takes the steps of a run, from its newest checkpoint to its end.

    Args:
        workdir: The run's files.
        trainer: The trainer whose `train_step` is called.
        batches: Function (first_step, seed) -> iterator of the batches from that step on.
        callbacks: What the run does besides its steps, in this order.
        num_steps: Length of the run in optimizer steps.
        seed: Seed of the batches.
        keep_checkpoints: Number of the newest checkpoints that are kept.
        num_rewinds: Number of times that a non-finite loss rewinds the run to its newest
            checkpoint, from where it takes other images up to the step where this was noticed.

    Attributes:
        workdir, trainer, num_steps: As given.
        checkpoints: The run's `Checkpoints`, with the best held-out step.
        summaries: `Summaries`, open while steps are taken.
        step: Number of finished steps.
        losses: Loss float32[] of each call since the last report. They remain on the device, so
            that a step never waits for the host.
        data_seconds: Time that the last call waited for its batch.
        should_stop: Set by a callback to end the run after the current step.

    Example:
        loop = TrainingLoop(workdir, trainer, batches, callbacks, num_steps=1000, seed=0)
        loop.run()
        loop.checkpoints.restore_best()
    """

    def __init__(
        self,
        workdir: Workdir,
        trainer: Trainer,
        batches: Callable[[int, int], Iterator[dict]],
        callbacks: Sequence[Callback],
        *,
        num_steps: int,
        seed: int,
        keep_checkpoints: int = 3,
        num_rewinds: int = 0,
    ):
        self.workdir = workdir
        self.trainer = trainer
        self.num_steps = num_steps
        self.checkpoints = trainer.new_checkpoints(workdir, keep_checkpoints)
        self.summaries = None
        self.step = 0
        self.losses = []
        self.data_seconds = 0.0
        self.should_stop = False
        self._finite_step = 0
        self._batches = batches
        self._callbacks = [
            callback
            for callback in callbacks
            if callback.every and (workdir.is_chief or not callback.chief_only)
        ]
        self._seed = seed
        self._num_rewinds = num_rewinds
        self._rewinds = Rewinds(
            workdir.shared_file("rewinds.json"), num_rewinds, is_writer=workdir.is_chief
        )

    def run(self) -> None:
        """Takes the remaining steps.

        After SIGINT or SIGTERM the current step ends, a checkpoint is saved and the program exits
        with code 130 or 143.

        Raises:
            NonFiniteLoss: The loss became non-finite after `num_rewinds` rewinds.
        """
        self.step = self.checkpoints.restore_newest()
        strategies.wait_for_all(self.trainer.strategy)  # all workers read before one writes
        if self.step and self.workdir.is_chief:
            print(f"resuming from step {self.step:,}")
        if self._num_rewinds and not self.step:
            self.checkpoints.save(0)  # a state to rewind to
        with StopSignals(strategies.any_worker_function(self.trainer.strategy)) as signals:
            while True:
                try:
                    self._take_steps(signals)
                    break
                except NonFiniteLoss as error:
                    self._rewind(error)
                    if signals.received():  # during the steps that were lost
                        signals.exit(self.step)
        strategies.wait_for_all(self.trainer.strategy)  # the chief has written its last files

    def _take_steps(self, signals: "StopSignals") -> None:
        """The loop itself."""
        batches = self._remaining_batches()
        self.losses, self._finite_step = [], self.step
        self.summaries = Summaries(
            self.workdir.file("summaries"), self.workdir.file("metrics.jsonl"), self.step
        )
        self.summaries.text("config", config.operative_markdown())
        self.summaries.hyperparameters(config.hyperparameters())
        try:
            for callback in self._callbacks:
                callback.on_train_begin(self)

            while self.step < self.num_steps and not self.should_stop:
                for callback in self._callbacks:
                    callback.on_step_begin(self)

                start = time.monotonic()
                batch = next(batches)
                self.data_seconds = time.monotonic() - start

                self.losses.append(self.trainer.train_step(batch))
                self.step += self.trainer.steps_per_execution

                for callback in self._callbacks:
                    if self.step % callback.every == 0 or self.step == self.num_steps:
                        callback.on_step_end(self)

                if signals.received(self.step // self.trainer.steps_per_execution):
                    self.save()
                    signals.exit(self.step)
        finally:
            for callback in self._callbacks:
                callback.on_train_end(self)
            self.summaries.close()
        if self.should_stop and signals.received():
            signals.exit(self.step)

    def _remaining_batches(self) -> Iterator[dict]:
        """The batches of the remaining steps; those of rewound windows have seeds of their own."""
        for first_step, end_step, seed in self._rewinds.segments(
            self._seed, self.step, self.num_steps
        ):
            num_calls = (end_step - first_step) // self.trainer.steps_per_execution
            yield from itertools.islice(self._batches(first_step, seed), num_calls)

    def _rewind(self, error: NonFiniteLoss) -> None:
        self.step = self.checkpoints.restore_newest()
        self._rewinds.add(self.step, error)
        logging.warning("rewinding to step %d, to continue with other images: %s", self.step, error)

    def save(self) -> None:
        """Saves a checkpoint.

        Raises:
            NonFiniteLoss: The loss or the weights are not finite; nothing is saved.
        """
        self.check_finite()
        if not self.trainer.weights_are_finite():
            raise NonFiniteLoss(self.step - 1, self.step)
        self.checkpoints.save(self.step)

    def mean_loss(self) -> float:
        """Mean of `losses`."""
        return float(np.mean([loss.numpy() for loss in self.losses]))

    def check_finite(self) -> None:
        """Raises NonFiniteLoss if a loss since the last check is not finite."""
        if self.losses and not np.isfinite(self.mean_loss()):
            raise NonFiniteLoss(self._finite_step, self.step)
        self._finite_step = self.step


class StopSignals:
    """Context in which SIGINT and SIGTERM are recorded instead of ending the program.

    A second signal has its usual effect.

    Args:
        any_worker: With several workers, which must stop at the same step: a function that returns
            whether any worker received a signal, given whether this one did.
    """

    def __init__(self, any_worker: Callable[[bool], bool] | None = None):
        self._any_worker = any_worker
        self._received = []

    def __enter__(self):
        signals = (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._record) for number in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number, _):
        self._received.append(number)
        signal.signal(number, self._previous[number])
        print(f"\n{signal.Signals(number).name}: finishing the step, then saving", file=sys.stderr)

    def received(self, call: int = 0) -> bool:
        """Whether to stop. Workers ask each other at call 0 and after every tenth call."""
        if self._any_worker is None:
            return bool(self._received)
        return call % _CALLS_PER_EXCHANGE == 0 and self._any_worker(bool(self._received))

    def exit(self, step: int) -> NoReturn:
        """Exits with 128 + the signal's number; SIGTERM's if another worker received it."""
        print(f"saved at step {step:,}; the same command continues", file=sys.stderr)
        sys.exit(128 + (self._received[0] if self._received else signal.SIGTERM))
