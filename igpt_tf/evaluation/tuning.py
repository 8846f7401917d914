"""One fine-tuning at one learning rate, and the search among several."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import keras
import numpy as np

from igpt_tf.data.input_pipeline import InputPipeline, subset
from igpt_tf.errors import InputError
from igpt_tf.evaluation.splits import Splits
from igpt_tf.model import Classifier, ImageGPT
from igpt_tf.objectives import Joint
from igpt_tf.savedmodel.load import SavedModel, load_model
from igpt_tf.training import loop, running, strategies
from igpt_tf.training.actions import Intervals
from igpt_tf.training.checkpoints import Checkpoints
from igpt_tf.training.classification import EvaluateClasses, Scorer
from igpt_tf.training.rewinds import NonFiniteLoss
from igpt_tf.training.summaries import Summaries
from igpt_tf.training.trainer import StepOptions, Trainer
from igpt_tf.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has taken its steps: what it trained, what judges it, its best step."""

    learning_rate: float
    trainer: Trainer
    scorer: Scorer
    checkpoints: Checkpoints


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What the runs at all learning rates share; see `finetune` for the attributes."""

    model: SavedModel
    splits: Splits
    objective: Joint
    build_optimizer: Callable[..., keras.optimizers.Optimizer]
    step_options: StepOptions
    intervals: Intervals
    feed: InputPipeline
    batch_size: int
    augmentation: Sequence[Callable]
    from_scratch: bool
    masks: np.ndarray | None
    patience: int
    seed: int

    def run(self, folder: Workdir, learning_rate: float, num_steps: int) -> Run:
        """Takes the steps of the run in `folder` that are left."""
        keras.utils.set_random_seed(self.seed)
        trainer = Trainer(
            self.new_classifier(),
            self.objective,
            self.build_optimizer(learning_rate=learning_rate),
            self.model.palette,
            batch_size=self.batch_size,
            **dataclasses.asdict(self.step_options),
        )
        scorer = Scorer(trainer, self.masks)
        checkpoints = running.take_steps(
            folder,
            trainer,
            self._batches,
            self.intervals,
            num_steps=num_steps,
            seed=self.seed,
            actions=lambda checkpoints, summaries: self._beside(scorer, checkpoints, summaries),
            patience=self.patience,
            title=f"finetune at {learning_rate:g}",
            measure="loss",
        )
        return Run(learning_rate, trainer, scorer, checkpoints)

    def new_classifier(self) -> Classifier:
        """The pretrained or fresh network, with a head that knows nothing."""
        if self.from_scratch:
            network = ImageGPT(**self.model.metadata["model"])
        else:
            network, _, _ = load_model(self.model.path)
        generative = self.objective.generative_weight > 0
        return Classifier(network, self.splits.num_classes, generative=generative)

    def _batches(self, first_step, seed):
        return self.feed.train_batches(
            self.splits.train,
            seed=seed,
            first_step=first_step,
            augmentation=self.augmentation,
            steps_per_execution=self.step_options.steps_per_execution,
        )

    def _beside(self, scorer: Scorer, checkpoints: Checkpoints, summaries: Summaries):
        heldout = self.feed.evaluation_batches(
            subset(self.splits.valid, self.intervals.num_heldout_images)
        )
        evaluate = EvaluateClasses(scorer, heldout, checkpoints, summaries)
        return [loop.Periodic(self.intervals.evaluate_every, evaluate)]


def search(
    tuning: Tuning, folder: Workdir, learning_rates: Sequence[float], search_steps: int
) -> tuple[list[dict], float]:
    """Tries each rate, and leaves the best one's run in `folder`, to be carried on.

    A rate is constant, so that its trial is the beginning of its run.

    Returns:
        (a row for each trial, none if there is one rate only; the rate with the best held-out
        accuracy, the first on a tie).

    Raises:
        InputError: Every rate diverged.
    """
    if len(learning_rates) == 1:
        return [], learning_rates[0]
    rows = [_trial(tuning, folder, rate, search_steps) for rate in learning_rates]
    best = max(rows, key=lambda row: row["valid_accuracy"] or 0.0)
    if best["valid_accuracy"] is None:
        raise InputError(
            "the loss became non-finite at every learning rate; try lower ones. "
            f"Received: finetune.learning_rates={list(learning_rates)}"
        )
    _adopt(folder, _trial_folder(folder, best["learning_rate"]))
    strategies.wait_for_all(tuning.feed.strategy)
    return rows, best["learning_rate"]


def _trial(tuning: Tuning, folder: Workdir, rate: float, search_steps: int) -> dict:
    """The row of one rate; from its file if it was tried before."""
    path = _trial_folder(folder, rate)
    trial = Workdir(path, strategies.worker_index(tuning.feed.strategy))
    row = trial.result()
    if row is None:
        row = {"learning_rate": rate, "step": None, "valid_accuracy": None}
        try:
            checkpoints = tuning.run(trial, rate, search_steps).checkpoints
            row |= {"step": checkpoints.best_step, "valid_accuracy": 1 - checkpoints.best_loss}
        except NonFiniteLoss as error:
            print(f"learning rate {rate:g} is out: {error}")
        if trial.is_chief:
            trial.write_result(row)
    return row


def _trial_folder(folder: Workdir, rate: float) -> str:
    return os.path.join(folder.run, "learning_rates", f"{rate:g}")


def _adopt(folder: Workdir, trial: str) -> None:
    """Moves the trial's state to the run's folder, unless that was done before."""
    if not folder.is_chief or os.listdir(folder.file("checkpoints")):
        return
    for name in ("metrics.jsonl", "summaries", "checkpoints"):  # what tells that it is done, last
        if os.path.exists(os.path.join(trial, name)):
            os.rename(os.path.join(trial, name), folder.file(name))
