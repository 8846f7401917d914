"""`finetune`, the root of fine-tuning: tries learning rates, trains a classifier, exports it."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence

import gin
import keras
import numpy as np
import tensorflow as tf

from igpt_tf import config
from igpt_tf.data import Source
from igpt_tf.data import augmentation as augmentations
from igpt_tf.data.augmentation import Augmentation
from igpt_tf.data.input_pipeline import InputPipeline, subset
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.evaluation import plots
from igpt_tf.evaluation.classifier_scores import Scorer, Scores, ensemble_masks
from igpt_tf.evaluation.linear_probe import NO_TEST_NOTE
from igpt_tf.evaluation.splits import SPLIT_TITLES, Splits, labelled_splits, resolve_source
from igpt_tf.files import write_json
from igpt_tf.formatting import few_images_warning, interval_text, percent, table, wilson_interval
from igpt_tf.model import Classifier, ImageGPT
from igpt_tf.model.classifier import check_dropout, check_layer
from igpt_tf.objectives import Joint, objective_from_config
from igpt_tf.savedmodel.load import SavedModel, load_model
from igpt_tf.savedmodel.write import write_classifier
from igpt_tf.training import strategies
from igpt_tf.training.callbacks import (
    Evaluate,
    Intervals,
    Profile,
    Progress,
    SaveCheckpoint,
    StopEarly,
)
from igpt_tf.training.loop import TrainingLoop
from igpt_tf.training.mesh import ShardedStrategy
from igpt_tf.training.rewinds import NonFiniteLoss
from igpt_tf.training.summaries import append_test
from igpt_tf.training.trainer import (
    StepOptions,
    Trainer,
    quantizes_on_device,
    set_precision,
)
from igpt_tf.training.workdir import Workdir, full_disk_error, open_run

_REFIT_NOTE = (
    "The test accuracy is that of the refit on training and held-out images; the held-out accuracy "
    "is that of the run by which its rate and number of steps were chosen."
)


@gin.configurable
def finetune(
    *,
    saved_model: str,
    workdir: str,
    build_objective: Callable[..., Joint],
    build_optimizer: Callable[..., keras.optimizers.Optimizer],
    strategy: tf.distribute.Strategy,
    step_options: StepOptions,
    intervals: Intervals,
    learning_rates: list[float],
    num_steps: int,
    batch_size: int,
    search_steps: int | None = None,
    patience: int = 0,
    source: Source | None = None,
    augmentation: Sequence[Augmentation] = (),
    refit: bool = False,
    from_scratch: bool = False,
    layer: int | None = None,
    dropout: float = 0.0,
    num_masks: int = 5,
    num_train: int | None = None,
    labels_per_class: int | None = None,
    seed: int = 0,
    precision: str = "float32",
    quantize_on: str = "auto",
    allow_changed_data: bool = False,
) -> None:
    """Fine-tunes a pretrained model as a classifier, or continues, and exports it.

    `result.json` has "accuracy" and its 95 % interval per split, the trials ("search"), and the
    chosen "learning_rate" and "step". With "refit", the held-out accuracy is that of the run by
    which they were chosen, and the test accuracy that of the exported classifier.

    Args:
        saved_model: Path of the pretrained model.
        workdir: Folder of the run. A run with checkpoints is resumed, a finished one is left alone.
        build_objective: Function (generative, dropout_dim) -> objective, given the model's own
            objective and the width of the features that dropout applies to, 0 without dropout.
        build_optimizer: Function (learning_rate) -> optimizer.
        strategy: Devices to train on.
        step_options: How a step is executed.
        intervals: Periods of logging, evaluation and checkpoints.
        learning_rates: Constant rates to choose from by held-out accuracy.
        num_steps: Length of the run in optimizer steps.
        batch_size: Global batch size in images.
        search_steps: Length of the trial of each rate; the best one is continued to `num_steps`.
            None tries each to the end.
        patience: Number of steps without a better held-out accuracy after which a run ends; 0
            never ends it early.
        source: Labelled images; those that the model was trained on if None.
        augmentation: Functions (images, seeds) -> images, applied in order to training images.
        refit: Whether to train once more, from the same start on training and held-out images
            together, with the chosen rate and for the number of steps of the best one, before the
            test images are measured (section 3.1). Held-out images keep their centre crop.
        from_scratch: Whether to start from random weights of the model's shape, for comparison.
        layer: The layer that the head reads, numbered as in `tools.linear_probe`; None for the
            final norm.
        dropout: Probability in training that a feature that the head reads is set to 0.
        num_masks: Number of masks whose majority decides, for masked models.
        num_train: Number of random training images to use; all if None.
        labels_per_class: Number of random training images of each class to use, instead of
            `num_train`; the paper's low-data experiments use 4, 25 and 400 (section 4.6).
        seed: Seed of the choice of training images, of their order and augmentation, of masks and
            of random weights.
        precision, quantize_on, allow_changed_data: As in `train`.

    Raises:
        InputError: The configuration, the model or the data is wrong.

    Source: paper, sections 2.3, 3.1 and 3.4.
    """
    if isinstance(strategy, ShardedStrategy):
        raise InputError(
            "fine-tuning holds the whole model on each device; choose default_strategy, "
            "mirrored_strategy, multi_worker_strategy or tpu_strategy. Received: "
            "finetune.strategy=@sharded_strategy()"
        )
    model = SavedModel(saved_model)
    check_layer(layer, model.metadata["model"]["num_layers"])
    check_dropout(dropout)
    on_device = quantizes_on_device("finetune.quantize_on", quantize_on)
    strategies.check_batch_size(strategy, batch_size, step_options.gradient_accumulation_steps)
    set_precision("finetune.precision", precision)
    source = resolve_source(model, source, "finetune")
    splits = labelled_splits(source, num_train, seed, labels_per_class=labels_per_class)
    if refit:
        _check_refit(splits, labels_per_class)
    generative = objective_from_config(model.metadata["objective"])
    dropout_dim = model.metadata["model"]["hidden_dim"] if dropout else 0
    objective = build_objective(generative=generative, dropout_dim=dropout_dim)
    search_steps = num_steps if search_steps is None else min(search_steps, num_steps)
    _check_steps(num_steps, search_steps, step_options, intervals)
    with strategies.lost_worker_error(strategy), strategy.scope():
        _check_rates(learning_rates, build_optimizer)
    config.refuse_unread_bindings()
    augmentations.check(augmentation, source.image_size)

    folder = open_run(
        workdir, strategy, model.palette, source, allow_changed_data=allow_changed_data
    )
    if folder is None:
        return
    with full_disk_error(workdir), strategies.lost_worker_error(strategy), strategy.scope():
        fine_tuning = FineTuning(
            model=model,
            splits=splits,
            objective=objective,
            build_optimizer=build_optimizer,
            step_options=step_options,
            intervals=intervals,
            pipeline=InputPipeline(
                objective,
                model.palette,
                strategy,
                batch_size=batch_size,
                quantize_on_device=on_device,
            ),
            augmentation=augmentation,
            from_scratch=from_scratch,
            layer=layer,
            dropout=dropout,
            masks=ensemble_masks(generative, num_masks, model.image_size),
            patience=patience,
            seed=seed,
        )
        print(_plan(source, splits, num_steps, batch_size, from_scratch))
        trials, rate = search(fine_tuning, folder, learning_rates, search_steps)
        loop, scorer = fine_tuning.run(folder, rate, num_steps)
        step = loop.checkpoints.restore_best()
        scores = fine_tuning.scores(scorer, ["valid"] if refit else ["valid", "test"])
        if refit:
            del loop, scorer  # one model in memory at a time
            worker = strategies.worker_index(strategy)
            refit_folder = Workdir(folder.shared_file("refit"), worker)
            _, scorer = fine_tuning.run(refit_folder, rate, step, refit=True)
            scores |= fine_tuning.scores(scorer, ["test"])
        _finish(folder, fine_tuning, scorer, scores, source, step, rate, trials, refit)


def _check_refit(splits: Splits, labels_per_class: int | None) -> None:
    if splits.test is None:
        raise InputError(
            "a refit trains on the held-out images too, so that only test images can be measured, "
            "and this data set has none; leave it out. Received: finetune.refit=True"
        )
    if labels_per_class is not None:
        raise InputError(
            "a refit would add the labels of all held-out images to the few; leave one of the "
            f"two out. Received: finetune.refit=True, finetune.labels_per_class={labels_per_class}"
        )


def _check_steps(
    num_steps: int, search_steps: int, step_options: StepOptions, intervals: Intervals
) -> None:
    if search_steps < 1:
        raise InputError(
            "a run and a trial need at least one step. "
            f"Received: finetune.{num_steps=}, finetune.{search_steps=}"
        )
    if intervals.evaluate_every < 1:
        raise InputError(
            "fine-tuning chooses by held-out accuracy, so it must be measured. "
            f"Received: intervals.evaluate_every={intervals.evaluate_every}"
        )
    intervals.check(num_steps, step_options.steps_per_execution)
    without_profile = dataclasses.replace(intervals, profile_steps=None)
    without_profile.check(search_steps, step_options.steps_per_execution)


def _check_rates(learning_rates: list[float], build_optimizer) -> None:
    """Raises: InputError, also from the optimizer, if a rate is wrong or occurs twice."""
    if not learning_rates or len(set(learning_rates)) < len(learning_rates):
        raise InputError(
            "give at least one learning rate, and each only once. "
            f"Received: finetune.learning_rates={learning_rates}"
        )
    for rate in learning_rates:
        build_optimizer(learning_rate=rate)


def _plan(
    source: Source, splits: Splits, num_steps: int, batch_size: int, from_scratch: bool
) -> str:
    """What is about to happen, in one line."""
    sizes = ", ".join(f"{size:,} {name}" for name, size in splits.sizes.items())
    start = "random" if from_scratch else "pretrained"
    return (
        f"{source.name}: {sizes} images of {splits.num_classes} classes; {start} weights, "
        f"{num_steps:,} steps of {batch_size}"
    )


class EvaluateClassifier(Evaluate):
    """Measures the held-out accuracy; the weights of the best step are kept.

    Args:
        every: Period in steps.
        batches: Held-out batches with labels and weights, the same at every evaluation.
        scorer: Scores the batches.
    """

    def __init__(self, every: int, batches: Iterable[dict], scorer: Scorer):
        super().__init__(every, batches)
        self._scorer = scorer

    def measure(self, trainer, batches):
        metrics = self._scorer.score(batches).metrics
        return metrics, 1 - metrics["accuracy"]


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """What the runs at all learning rates share; see `finetune` for the attributes."""

    model: SavedModel
    splits: Splits
    objective: Joint
    build_optimizer: Callable[..., keras.optimizers.Optimizer]
    step_options: StepOptions
    intervals: Intervals
    pipeline: InputPipeline
    augmentation: Sequence[Augmentation]
    from_scratch: bool
    layer: int | None
    dropout: float
    masks: np.ndarray | None
    patience: int
    seed: int

    def run(
        self, folder: Workdir, learning_rate: float, num_steps: int, *, refit: bool = False
    ) -> tuple[TrainingLoop, Scorer]:
        """Takes the remaining steps of the run in `folder`.

        A refit trains on the held-out images too; they are not measured, and its last step counts.
        """
        keras.utils.set_random_seed(self.seed)
        trainer = Trainer(
            self.new_classifier(),
            self.objective,
            self.build_optimizer(learning_rate=learning_rate),
            self.model.palette,
            batch_size=self.pipeline.batch_size,
            **dataclasses.asdict(self.step_options),
        )
        scorer = Scorer(trainer, self.masks)
        intervals, every = self.intervals, self.step_options.steps_per_execution
        evaluate_every = 0 if refit else intervals.evaluate_every
        heldout = subset(self.splits.valid, intervals.num_heldout_images)
        loop = TrainingLoop(
            folder,
            trainer,
            functools.partial(
                self._train_batches, self.splits.merged if refit else self.splits.train
            ),
            [
                Profile(intervals.profile_steps, every=every),
                Progress(
                    intervals.log_every,
                    every=every,
                    title=f"{'refit' if refit else 'finetune'} at {learning_rate:g}",
                    loss_name="loss",
                ),
                EvaluateClassifier(
                    evaluate_every, self.pipeline.evaluation_batches(heldout), scorer
                ),
                SaveCheckpoint(intervals.checkpoint_every),
                StopEarly(evaluate_every, self.patience),
            ],
            num_steps=num_steps,
            seed=self.seed,
            keep_checkpoints=intervals.keep_checkpoints,
        )
        loop.run()
        return loop, scorer

    def new_classifier(self) -> Classifier:
        """The pretrained or random network, with an untrained head."""
        if self.from_scratch:
            network = ImageGPT(**self.model.metadata["model"])
        else:
            network, _, _ = load_model(self.model.path)
        is_generative = self.objective.generative_weight > 0
        return Classifier(
            network,
            self.splits.num_classes,
            generative=is_generative,
            layer=self.layer,
            dropout=self.dropout,
        )

    def scores(self, scorer: Scorer, names: Sequence[str]) -> dict[str, Scores]:
        """Scores on the splits in `names` that exist."""
        return {
            name: scorer.score(self.pipeline.evaluation_batches(examples))
            for name, examples in self.splits
            if name in names
        }

    def _train_batches(self, examples: Examples, first_step: int, seed: int):
        return self.pipeline.train_batches(
            examples,
            seed=seed,
            first_step=first_step,
            augmentation=self.augmentation,
            steps_per_execution=self.step_options.steps_per_execution,
        )


def search(
    fine_tuning: FineTuning, folder: Workdir, learning_rates: Sequence[float], search_steps: int
) -> tuple[list[dict], float]:
    """Tries each rate, and moves the best one's run to `folder`, where it is continued.

    A rate is constant, so its trial is the beginning of its run.

    Returns:
        A row per trial, none if there is one rate only; and the rate with the best held-out
        accuracy, the first on a tie.

    Raises:
        InputError: The loss became non-finite at every rate.
    """
    if len(learning_rates) == 1:
        return [], learning_rates[0]
    rows = [_try_rate(fine_tuning, folder, rate, search_steps) for rate in learning_rates]
    best = max(rows, key=lambda row: row["valid_accuracy"] or 0.0)
    if best["valid_accuracy"] is None:
        raise InputError(
            "the loss became non-finite at every learning rate; try lower ones. "
            f"Received: finetune.learning_rates={list(learning_rates)}"
        )
    _adopt(folder, _trial_folder(folder, best["learning_rate"]))
    strategies.wait_for_all(fine_tuning.pipeline.strategy)
    return rows, best["learning_rate"]


def _try_rate(fine_tuning: FineTuning, folder: Workdir, rate: float, search_steps: int) -> dict:
    """The row of one rate, from its file if it was tried before."""
    worker = strategies.worker_index(fine_tuning.pipeline.strategy)
    trial = Workdir(_trial_folder(folder, rate), worker)
    row = trial.result()
    if row is None:
        row = {"learning_rate": rate, "step": None, "valid_accuracy": None}
        try:
            checkpoints = fine_tuning.run(trial, rate, search_steps)[0].checkpoints
            row |= {"step": checkpoints.best_step, "valid_accuracy": 1 - checkpoints.best_loss}
        except NonFiniteLoss as error:
            print(f"learning rate {rate:g} is dropped: {error}")
        if trial.is_chief:
            trial.write_result(row)
    return row


def _trial_folder(folder: Workdir, rate: float) -> str:
    return folder.shared_file("learning_rates", f"{rate:g}")


def _adopt(folder: Workdir, trial: str) -> None:
    """Moves a trial's state to the run's folder, unless that has been done."""
    if not folder.is_chief or os.listdir(folder.file("checkpoints")):
        return
    for name in ("metrics.jsonl", "summaries", "checkpoints"):  # last what shows that it is done
        if os.path.exists(os.path.join(trial, name)):
            os.rename(os.path.join(trial, name), folder.file(name))


def _finish(
    folder: Workdir,
    fine_tuning: FineTuning,
    scorer: Scorer,
    scores: dict[str, Scores],
    source: Source,
    step: int,
    learning_rate: float,
    trials: list[dict],
    refit: bool,
) -> None:
    """Exports the classifier of `step`; ends the run."""
    splits = fine_tuning.splits
    if not folder.is_chief:
        return
    if "test" in scores:
        append_test(folder.file("metrics.jsonl"), step, **scores["test"].metrics)
    task = {
        **fine_tuning.objective.get_config(),
        "learning_rate": learning_rate,
        "refit": refit,
        "from_scratch": fine_tuning.from_scratch,
        "layer": scorer.trainer.model.layer,
        "dropout": fine_tuning.dropout,
    }
    class_names = source.class_names or tuple(str(label) for label in range(splits.num_classes))
    classifier = scorer.trainer.model
    exported = folder.file("export", str(step))
    write_classifier(
        scorer.trainer.export_model(fine_tuning.new_classifier),
        fine_tuning.model.palette,
        exported,
        masks=fine_tuning.masks,
        task=task,
        objective=fine_tuning.objective.generative.get_config(),
        data={**source.description, "fingerprint": source.fingerprint()},
        class_names=class_names,
        step=step,
        nats_per_token=scores["test" if refit else "valid"].nats_per_token,
    )
    result = {
        "saved_model": fine_tuning.model.path,
        "data": source.description,
        "num_images": splits.sizes,
        "num_classes": splits.num_classes,
        "measured_on": splits.measured_on,
        "step": step,
        **task,
        **{
            metric: {name: score.metrics[metric] for name, score in scores.items()}
            for metric in ("accuracy", "class_nats", "nats_per_token")
        },
        "loss_name": fine_tuning.objective.generative.loss_name,
        "accuracy_interval": {
            name: wilson_interval(score.metrics["accuracy"], splits.sizes[name])
            for name, score in scores.items()
        },
        "search": trials,
        "parameters": classifier.count_params(),
        "export": f"export/{step}",
    }
    _write_confusion(folder, result, scores[splits.measured_on].confusion, class_names)
    folder.write_result(result)
    print(f"{_summary(result)}\nSavedModel: {exported}")


def _summary(result: dict) -> str:
    """The trials and the accuracies of the chosen run, as a table."""
    measured = [name for name in ("valid", "test") if name in result["accuracy"]]
    empty = [""] * (2 * len(measured) - 1)
    rows = [
        [
            f"trial at {row['learning_rate']:g}",
            row["step"] or "",
            percent(row["valid_accuracy"]),
            *empty,
        ]
        for row in result["search"]
    ]
    start = "from scratch" if result["from_scratch"] else "fine-tuned"
    rows.append([f"{start} at {result['learning_rate']:g}", result["step"]])
    header = ["classification", "best step"]
    for name in measured:
        header += [f"{SPLIT_TITLES[name]} (n={result['num_images'][name]:,})", "95 % interval"]
        rows[-1] += [
            percent(result["accuracy"][name]),
            interval_text(result["accuracy_interval"][name]),
        ]
    notes = [
        few_images_warning(result["num_images"][measured[-1]]),
        NO_TEST_NOTE if "test" not in measured else "",
        _REFIT_NOTE if result["refit"] else "",
    ]
    return "\n".join([table(header, rows), *filter(None, notes)])


def _write_confusion(folder: Workdir, result: dict, confusion, class_names) -> None:
    split = result["measured_on"]
    content = {"part": split, "class_names": list(class_names), "confusion": confusion}
    write_json(folder.file("confusion.json"), content)
    low_high = interval_text(result["accuracy_interval"][split])
    title = (
        f"{result['data']['name']}: {percent(result['accuracy'][split])} correct "
        f"({low_high}, n={result['num_images'][split]:,})"
    )
    plots.confusion(folder.file("confusion.png"), confusion, class_names, title)
