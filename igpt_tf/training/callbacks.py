"""What a run does besides its steps: progress, evaluation, checkpoints, sample images and more."""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import gin
import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from igpt_tf import runtime
from igpt_tf.data import Source
from igpt_tf.data.input_pipeline import subset
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.image_grid import grid, write_png
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.sampler import Sampler

_NUM_SAMPLES = 8
_PROBE_STRENGTH = 0.01  # of the ridge, for standardised features
_PROBE_BATCH_SIZE = 64


@gin.register("intervals")
@dataclasses.dataclass(frozen=True)
class Intervals:
    """Periods of a run's callbacks in optimizer steps; 0 means never.

    Attributes:
        log_every: Period of the training loss.
        evaluate_every: Period of the held-out loss.
        checkpoint_every: Period of the checkpoints.
        sample_every: Period of the sample images.
        probe_every: Period of the online probe of pretraining; needs labels.
        keep_checkpoints: Number of the newest checkpoints that are kept.
        num_heldout_images: Size of the fixed subset that evaluations use; None for all.
        num_probe_images: Number of training images that the online probe is fitted on, and maximum
            number of held-out images that it is measured on.
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
        """Raises: InputError unless the periods suit a run of that length."""
        periods = {"train.num_steps": num_steps} | {
            f"intervals.{field.name}": getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name.endswith("_every")
        }
        for name, steps in periods.items():
            if steps_per_execution < 1 or steps % steps_per_execution:
                raise InputError(
                    f"{name} must be a multiple of step_options.steps_per_execution. "
                    f"Received: {name}={steps}, steps_per_execution={steps_per_execution}"
                )
        if self.num_probe_images < 2:
            raise InputError(
                "the online probe needs at least 2 images. "
                f"Received: intervals.num_probe_images={self.num_probe_images}"
            )
        profile = self.profile_steps
        if profile and (len(profile) != 2 or not 1 <= profile[0] <= profile[1] <= num_steps):
            raise InputError(
                "intervals.profile_steps must be (first, last), counted from 1 and within the run. "
                f"Received: intervals.profile_steps={profile}, num_steps={num_steps}"
            )


class Callback:
    """Base class of what a run does besides its steps. `TrainingLoop` calls the methods.

    All methods receive the loop, whose attributes (step, trainer, checkpoints, summaries, workdir,
    ...) they may use. A callback ends the run by setting `loop.should_stop = True`.

    Attributes:
        every: Period of `on_step_end` in steps; it is also called after the last step. A callback
            with period 0 is not used at all.
        chief_only: Whether only the chief worker uses the callback.

    Example:
        class PrintStep(Callback):
            def on_step_end(self, loop):
                print(loop.step, loop.mean_loss())
    """

    every: int = 1
    chief_only: bool = False

    def on_train_begin(self, loop) -> None:
        """Called before the first step, also of a run that is resumed or rewound."""

    def on_step_begin(self, loop) -> None:
        """Called before each call of the training step, before its batch is loaded."""

    def on_step_end(self, loop) -> None:
        """Called every `every` steps and after the last; `loop.step` steps are finished."""

    def on_train_end(self, loop) -> None:
        """Called at the end, also after an error."""


class Progress(Callback):
    """Shows a progress bar; writes the training loss, learning rate, gradient norm and speed.

    Place it first among the callbacks that take time: the time of later ones is not counted.

    Args:
        log_every: Period of the written numbers in steps.
        every: Steps per call.
        title: Title of the progress bar.
        loss_name: Name of the loss in the summaries.
        peak_images_per_second: See `training.utilization`; None leaves out the utilization.
    """

    def __init__(
        self,
        log_every: int,
        *,
        every: int = 1,
        title: str = "pretrain",
        loss_name: str = "nats_per_token",
        peak_images_per_second: float | None = None,
    ):
        self.every = every
        self._log_every = log_every
        self._title = title
        self._loss_name = loss_name
        self._peak_images_per_second = peak_images_per_second
        self._bar = None

    def on_train_begin(self, loop):
        self._is_compiled = False
        self._reset()
        self._bar = tqdm(
            initial=loop.step,
            total=loop.num_steps,
            unit="step",
            desc=self._title,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def on_step_begin(self, loop):
        self._start = time.monotonic()

    def on_step_end(self, loop):
        self._bar.update(self.every)
        is_due = self._log_every and (
            loop.step % self._log_every == 0 or loop.step == loop.num_steps
        )
        if is_due:
            loop.check_finite()
        elif not self._is_compiled:
            loop.losses[-1].numpy()  # waits for the device
        if self._is_compiled:
            self._seconds += time.monotonic() - self._start
            self._data_seconds += loop.data_seconds
            self._num_calls += 1
        self._is_compiled = True  # the first call, which compiles, is not timed
        if is_due:
            self._write(loop)
            loop.losses.clear()
            self._reset()

    def on_train_end(self, loop):
        if self._bar is not None:
            self._bar.close()

    def _reset(self):
        self._seconds, self._data_seconds, self._num_calls = 0.0, 0.0, 0

    def _write(self, loop):
        loss, memory, speeds = loop.mean_loss(), runtime.peak_memory_gb(), self._speeds(loop)
        shown = {self._loss_name: f"{loss:.4f}"}
        if speeds:
            shown["images/s"] = f"{speeds['images_per_second']:.1f}"
        self._bar.set_postfix({**shown, "GB": f"{memory:.1f}"})
        values = {**speeds, "peak_memory_gb": memory, self._loss_name: loss}
        values["learning_rate"] = loop.trainer.learning_rate()
        norm = float(loop.trainer.gradient_norm)
        if math.isfinite(norm):
            values["gradient_norm"] = norm
        loop.summaries.scalars(loop.step, "train", **values)

    def _speeds(self, loop) -> dict[str, float]:
        if not self._num_calls:
            return {}
        seconds = max(self._seconds, 1e-9)
        speed = loop.trainer.batch_size * self.every * self._num_calls / seconds
        speeds = {
            "images_per_second": speed,
            "tokens_per_second": speed * math.prod(loop.trainer.model.image_size),
            "data_wait": self._data_seconds / seconds,
        }
        if self._peak_images_per_second:
            speeds["model_flops_utilization"] = speed / self._peak_images_per_second
        return speeds


class Baselines(Callback):
    """Shows baselines as constant lines beside the held-out loss.

    Args:
        nats_per_token: Loss of each baseline by name, see `token_baselines`.
    """

    chief_only = True

    def __init__(self, nats_per_token: dict[str, float]):
        self._nats_per_token = nats_per_token

    def on_train_begin(self, loop):
        for name, nats in self._nats_per_token.items():
            loop.summaries.baseline(name, nats, loop.num_steps)


class Evaluate(Callback):
    """Measures the held-out loss; the weights of the best step are kept.

    Args:
        every: Period in steps.
        batches: Held-out batches with weights, the same at every evaluation.
    """

    def __init__(self, every: int, batches: Iterable[dict]):
        self.every = every
        self._batches = batches

    def on_step_end(self, loop):
        with loop.trainer.evaluation_weights():
            metrics, loss = self.measure(loop.trainer, self._batches)
            loop.summaries.scalars(loop.step, "valid", **metrics)
            loop.checkpoints.keep_if_best(loop.step, loss)

    def measure(self, trainer, batches: Iterable[dict]) -> tuple[dict[str, float], float]:
        """Returns the metrics by name, and the loss that decides which step is the best."""
        nats = trainer.evaluate(batches)
        return {"nats_per_token": nats}, nats


class SaveCheckpoint(Callback):
    """Saves the state to resume from.

    Args:
        every: Period in steps.
    """

    def __init__(self, every: int):
        self.every = every

    def on_step_end(self, loop):
        loop.save()


class StopEarly(Callback):
    """Ends the run if the held-out result has not improved for some time.

    Decided by the checkpoint's own state alone, so that a resumed run ends where an uninterrupted
    one does.

    Args:
        every: Period of the evaluations in steps.
        patience: Number of steps without a better result.
    """

    def __init__(self, every: int, patience: int):
        self.every = every if patience else 0
        self._patience = patience

    def on_train_begin(self, loop):
        best_step = loop.checkpoints.best_step
        loop.should_stop = bool(best_step) and loop.step - best_step >= self._patience

    def on_step_end(self, loop):
        self.on_train_begin(loop)
        if loop.should_stop:
            loop.save()


class Profile(Callback):
    """Records a trace of some steps for TensorBoard's profile page.

    A call of the step is recorded as a whole. A run that begins among the steps records the rest,
    one that begins after them nothing.

    Args:
        steps: (first, last), counted from 1; None records nothing.
        every: Steps per call.
    """

    def __init__(self, steps: tuple[int, int] | None, *, every: int = 1):
        self.every = every if steps else 0
        self._first, self._last = steps or (1, 0)
        self._is_recording = False

    def on_step_begin(self, loop):
        if not self._is_recording and self._first - self.every <= loop.step < self._last:
            tf.profiler.experimental.start(loop.workdir.file("summaries"))
            self._is_recording = True

    def on_step_end(self, loop):
        if self._is_recording and loop.step >= self._last:
            self.on_train_end(loop)

    def on_train_end(self, loop):
        if self._is_recording:
            tf.profiler.experimental.stop()
            self._is_recording = False


class SampleImages(Callback):
    """Writes what the model generates: completions beside their originals, and samples.

    Args:
        every: Period in steps.
        examples: Held-out images; the lower halves of 8 of them are completed.
        seed: Seed of the sampler, the same at every call, so that images can be compared.
    """

    chief_only = True

    def __init__(self, every: int, examples: Examples, *, seed: int):
        self.every = every
        self._examples = examples
        self._params = SamplingParams(seed=seed)
        self._sampler = None

    def on_train_begin(self, loop):
        if self._sampler is None:
            trainer = loop.trainer
            self._sampler = Sampler(trainer.model, jit_compile=runtime.has_accelerator())
            images, _ = subset(self._examples, _NUM_SAMPLES).arrays()
            self._originals = trainer.palette.encode(images)

    def on_step_end(self, loop):
        grids = {"completions": self._completions(loop)}
        if loop.trainer.objective.generation == "raster order":
            grids["samples"] = self._samples(loop)
        for name, image in grids.items():
            loop.summaries.image(loop.step, name, image)
        path = loop.workdir.file("samples", f"step_{loop.step}.png")
        write_png(path, np.concatenate(list(grids.values())))

    def _completions(self, loop) -> np.ndarray:
        num_given = self._originals.shape[1] // 2
        completed = self._sampler.complete(self._originals, num_given, self._params)
        tokens = np.concatenate([self._originals, completed])
        return self._grid(loop, tokens, "held-out images, and completions of their upper halves")

    def _samples(self, loop) -> np.ndarray:
        tokens = self._sampler.sample(len(self._originals), self._params)
        return self._grid(loop, tokens, "samples")

    def _grid(self, loop, tokens, content: str) -> np.ndarray:
        images = loop.trainer.palette.decode(tokens, loop.trainer.model.image_size)
        title = f"{os.path.normpath(loop.workdir.path)}, step {loop.step:,}: {content}"
        return grid(images, columns=len(self._originals), title=title)


class OnlineProbe(Callback):
    """Measures the features during pretraining: ridge regression on each layer, in closed form.

    Fast rather than exact: the best layer is chosen by the accuracy that is reported.
    `tools.linear_probe` measures with care. Data without labels, or of one class, are not probed.

    Args:
        every: Period in steps.
        source: The data set.
        num_images: Number of training images to fit on, and maximum number of held-out images to
            measure on.
    """

    chief_only = True

    def __init__(self, every: int, source: Source, num_images: int):
        self.every = every
        self._parts = [subset(part, num_images) for part in (source.train, source.valid)]
        self._name = source.name
        self._features = None

    def on_train_begin(self, loop):
        if self._features is not None or not self._has_classes():
            return
        train, heldout = self._parts
        names = np.unique(train.labels)
        self._tokens = [loop.trainer.palette.encode(part.arrays()[0]) for part in self._parts]
        self._classes = [class_indices(part.labels, names) for part in (train, heldout)]
        self._features = tf.function(
            loop.trainer.model.features, autograph=False, reduce_retracing=True
        )

    def _has_classes(self) -> bool:
        if any(part.labels is None for part in self._parts):
            logging.warning("no online probe: %s has no labels", self._name)
            return False
        if len(np.unique(self._parts[0].labels)) < 2:
            logging.warning("no online probe: %s has one class only", self._name)
            return False
        return True

    def on_step_end(self, loop):
        if self._features is None:
            return
        with loop.trainer.evaluation_weights():
            train, heldout = (self._layer_features(tokens) for tokens in self._tokens)
        accuracies = [
            ridge_accuracy(train_layer, self._classes[0], heldout_layer, self._classes[1])
            for train_layer, heldout_layer in zip(train, heldout, strict=True)
        ]
        best = int(np.argmax(accuracies))
        loop.summaries.scalars(
            loop.step, "valid", probe_accuracy=accuracies[best], probe_layer=best
        )
        loop.summaries.layer_accuracies(loop.step, accuracies)

    def _layer_features(self, tokens: np.ndarray) -> np.ndarray:
        """int32[N,T] -> float32[L+1,N,D]."""
        # The last batch is filled up: another shape would be traced and compiled again.
        padded = np.pad(tokens, ((0, -len(tokens) % _PROBE_BATCH_SIZE), (0, 0)))
        batches = np.split(padded, len(padded) // _PROBE_BATCH_SIZE)
        with ThreadPoolExecutor(runtime.num_parallel_ops()) as threads:
            features = list(threads.map(self._batch_features, batches))
        return np.concatenate(features)[: len(tokens)].swapaxes(0, 1)

    def _batch_features(self, tokens: np.ndarray) -> np.ndarray:
        return self._features(tf.constant(tokens)).numpy()


def class_indices(labels: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Index of each label in the sorted `names`, int[N]; -1 for a label that is not among them."""
    indices = np.minimum(np.searchsorted(names, labels), len(names) - 1)
    return np.where(names[indices] == labels, indices, -1)


def ridge_accuracy(
    train: np.ndarray,
    train_classes: np.ndarray,
    heldout: np.ndarray,
    heldout_classes: np.ndarray,
) -> float:
    """Held-out accuracy of ridge regression from standardised features to classes.

    Args:
        train: Features to fit on, float[N,D].
        train_classes: Their classes, int[N].
        heldout: Features to measure on, float[M,D].
        heldout_classes: Their classes, int[M]; -1 is never counted as right.
    """
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, heldout = ((part - mean) / deviation for part in (train, heldout))
    targets = np.eye(train_classes.max() + 1)[train_classes]
    ridge = _PROBE_STRENGTH * len(train) * np.eye(train.shape[1])
    weights = np.linalg.solve(train.T @ train + ridge, train.T @ (targets - targets.mean(axis=0)))
    predicted = np.argmax(heldout @ weights + targets.mean(axis=0), axis=1)
    return float(np.mean(predicted == heldout_classes))
