"""What a run does besides its steps, each at its own period: report, evaluate, draw."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable

import gin
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igpt_tf.errors import InputError
from igpt_tf.image_grid import grid, write_png
from igpt_tf.objectives import Objective
from igpt_tf.palette import Palette
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.sampler import Sampler
from igpt_tf.training import strategies
from igpt_tf.training.checkpoints import Checkpoints
from igpt_tf.training.rewinds import NonFiniteLoss
from igpt_tf.training.summaries import Summaries
from igpt_tf.training.trainer import Trainer


@gin.register("intervals")
@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often a run does what, in optimizer steps; 0 is never.

    Attributes:
        log_every: Period of the training loss.
        evaluate_every: Period of the held-out loss.
        checkpoint_every: Period of the checkpoints.
        sample_every: Period of the pictures.
        probe_every: Period of the online probe of pretraining; no probe where there are no labels.
        keep_checkpoints: How many of the newest checkpoints stay.
        num_heldout_images: Size of the fixed subset that evaluations use; None for all.
        num_probe_images: The online probe fits on so many training images and measures on at most
            as many held-out ones.
        profile_steps: (first, last) step of a trace for TensorBoard's profile page; None for none.
    """

    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    sample_every: int = 0
    probe_every: int = 0
    keep_checkpoints: int = 3
    num_heldout_images: int | None = None
    num_probe_images: int = 1000
    profile_steps: tuple[int, int] | None = None

    def check(self, num_steps: int, steps_per_execution: int) -> None:
        """Raises: InputError unless every period falls between two calls of the step."""
        periods = {
            "train.num_steps": num_steps,
            "intervals.log_every": self.log_every,
            "intervals.evaluate_every": self.evaluate_every,
            "intervals.checkpoint_every": self.checkpoint_every,
            "intervals.sample_every": self.sample_every,
            "intervals.probe_every": self.probe_every,
        }
        if self.num_probe_images < 2:
            raise InputError(
                "the online probe needs images. "
                f"Received: intervals.num_probe_images={self.num_probe_images}"
            )
        for name, steps in periods.items():
            if steps_per_execution < 1 or steps % steps_per_execution:
                raise InputError(
                    f"{name} must be a multiple of step_options.steps_per_execution. "
                    f"Received: {name}={steps}, steps_per_execution={steps_per_execution}"
                )


class Report:
    """The progress bar, the training loss and the speed.

    Losses stay on the device between two reports, so that a step never waits for the host.

    Args:
        summaries: Where the numbers go.
        trainer: Tells how many images and tokens a call of its step takes.
        first_step: Steps already done.
        num_steps: Steps at the end.
        title: Name of the progress bar.
        measure: Name of the loss in the summaries.
    """

    def __init__(
        self,
        summaries: Summaries,
        trainer: Trainer,
        *,
        first_step: int,
        num_steps: int,
        title: str,
        measure: str,
    ):
        self._summaries = summaries
        self._steps_per_call = trainer.steps_per_execution
        self._images_per_call = trainer.batch_size * trainer.steps_per_execution
        self._tokens_per_image = math.prod(trainer.model.image_size)
        self._measure = measure
        self._finite_step = first_step
        self._restart()
        self._compiled = False
        self._bar = tqdm(
            initial=first_step,
            total=num_steps,
            unit="step",
            desc=title,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def add(self, loss: tf.Tensor, waited: float) -> None:
        """Notes a call of the step.

        Args:
            loss: Its loss, float32[].
            waited: Seconds it waited for its data.
        """
        self._losses.append(loss)
        self._bar.update(self._steps_per_call)
        if self._compiled:
            self._waited += waited
            self._timed += 1
        else:
            # The first step traces and compiles; counting it would hide the speed of the rest.
            loss.numpy()
            self._since = time.monotonic()
            self._compiled = True

    def excluding(self, action: Callable[[int], None]) -> Callable[[int], None]:
        """Wraps an action so that its time does not count as training time."""

        def timed(step: int) -> None:
            start = time.monotonic()
            action(step)
            self._since += time.monotonic() - start

        return timed

    def check_finite(self, step: int) -> None:
        """Stops a run whose loss is no number any more, before a checkpoint is overwritten.

        Raises:
            NonFiniteLoss: Names the steps between which it happened.
        """
        if self._losses and not np.isfinite(self._mean_loss()):
            raise NonFiniteLoss(self._finite_step, step)
        self._finite_step = step

    def __call__(self, step: int) -> None:
        """Writes the mean since the last report, and the speed if a call was timed since."""
        self.check_finite(step)
        loss = self._mean_loss()
        speeds = self._speeds()
        memory = strategies.peak_memory_gb()
        shown = {self._measure: f"{loss:.4f}"}
        if speeds:
            shown["images/s"] = f"{speeds['images_per_second']:.1f}"
        self._bar.set_postfix({**shown, "GB": f"{memory:.1f}"})
        self._summaries.scalars(
            step, "train", **speeds, peak_memory_gb=memory, **{self._measure: loss}
        )
        self._restart()

    def _speeds(self) -> dict[str, float]:
        if not self._timed:  # the one call so far was the first, which compiles
            return {}
        seconds = max(time.monotonic() - self._since, 1e-9)
        speed = self._images_per_call * self._timed / seconds
        return {
            "images_per_second": speed,
            "tokens_per_second": speed * self._tokens_per_image,
            "data_wait": self._waited / seconds,
        }

    def _restart(self) -> None:
        self._losses, self._waited, self._timed = [], 0.0, 0
        self._since = time.monotonic()

    def close(self) -> None:
        """Ends the progress bar."""
        self._bar.close()

    def _mean_loss(self) -> float:
        return float(np.mean([loss.numpy() for loss in self._losses]))


class Evaluate:
    """The held-out loss; the best step's weights are kept.

    Args:
        trainer: Scores the batches.
        batches: Held-out batches with weights, the same at every call.
        checkpoints: Keeps the best.
        summaries: Where the numbers go.
        weights: Lends the model the weights to evaluate, where they are not the trained ones.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: Iterable[dict],
        checkpoints: Checkpoints,
        summaries: Summaries,
        weights: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self._trainer = trainer
        self._batches = batches
        self._checkpoints = checkpoints
        self._summaries = summaries
        self._weights = weights

    def __call__(self, step: int) -> None:
        with self._weights():
            self._note(step)

    def _note(self, step):
        nats = self._trainer.evaluate(self._batches)
        self._summaries.scalars(step, "valid", nats_per_token=nats)
        self._checkpoints.note_heldout(step, nats)


class Draw:
    """Pictures of what the model knows: samples, and completions beside their originals.

    Args:
        sampler: Paints with the model in training.
        palette: Colours of the tokens.
        originals: Tokens int32[n,T] of held-out images; their lower halves are completed.
        objective: Whether images can be sampled from nothing.
        summaries: Shows the pictures in TensorBoard.
        path: Formats the PNG's path from the step.
        seed: The same noise at every call, so that pictures compare.
    """

    def __init__(
        self,
        sampler: Sampler,
        palette: Palette,
        originals: np.ndarray,
        objective: Objective,
        summaries: Summaries,
        path: Callable[[int], str],
        *,
        seed: int,
    ):
        self._sampler = sampler
        self._palette = palette
        self._originals = originals
        self._objective = objective
        self._summaries = summaries
        self._path = path
        self._seed = seed

    def __call__(self, step: int) -> None:
        pictures = {"completions": self._completions()}
        if self._objective.generation == "raster order":
            pictures["samples"] = self._samples()
        for name, picture in pictures.items():
            self._summaries.image(step, name, picture)
        write_png(self._path(step), np.concatenate(list(pictures.values())))

    def _completions(self):
        given = self._originals.shape[1] // 2
        completed = self._sampler.complete(self._originals, given, SamplingParams(seed=self._seed))
        return self._grid(np.concatenate([self._originals, completed]))

    def _samples(self):
        return self._grid(
            self._sampler.sample(len(self._originals), SamplingParams(seed=self._seed))
        )

    def _grid(self, tokens):
        images = self._palette.decode(tokens, self._sampler.model.image_size)
        return grid(images, columns=len(self._originals))
