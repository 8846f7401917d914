"""`finetune`: the root of fine-tuning. A search over learning rates, the run, the SavedModel."""

import gin
import tensorflow as tf

# What gin may name registers itself on import.
import igpt_tf.training.optimization  # noqa: F401
from igpt_tf import config
from igpt_tf.data import Source
from igpt_tf.data import augmentation as augmentations
from igpt_tf.data.input_pipeline import InputPipeline
from igpt_tf.errors import InputError
from igpt_tf.evaluation import plots, summary
from igpt_tf.evaluation.splits import Splits, labelled_splits, resolve_source
from igpt_tf.evaluation.tuning import Run, Tuning, search
from igpt_tf.files import write_json
from igpt_tf.formatting import percent
from igpt_tf.objectives import objective_from_config
from igpt_tf.savedmodel.load import SavedModel
from igpt_tf.savedmodel.write import write_classifier
from igpt_tf.training import profiling, running, strategies
from igpt_tf.training.actions import Intervals
from igpt_tf.training.classification import Scores, ensemble_masks
from igpt_tf.training.summaries import note_test
from igpt_tf.training.trainer import StepOptions
from igpt_tf.training.workdir import Workdir


@gin.configurable
def finetune(
    *,
    saved_model: str,
    workdir: str,
    build_objective,
    build_optimizer,
    strategy: tf.distribute.Strategy,
    step_options: StepOptions,
    intervals: Intervals,
    learning_rates: list[float],
    num_steps: int,
    batch_size: int,
    search_steps: int | None = None,
    patience: int = 0,
    source: Source | None = None,
    augmentation=(),
    from_scratch: bool = False,
    num_masks: int = 5,
    num_train: int | None = None,
    seed: int = 0,
    precision: str = "float32",
    quantize_on: str = "auto",
) -> None:
    """Fine-tunes a pretrained model to tell classes, or goes on with it, and exports it.

    Args:
        saved_model: The pretrained model.
        workdir: Folder of the run. A folder with checkpoints is resumed, a finished one left.
        build_objective: Called with generative, the model's own objective.
        build_optimizer: Called with learning_rate.
        strategy, step_options: Where to run, how to carry out a step.
        intervals: How often to report, evaluate and save.
        learning_rates: Constant rates to choose from by held-out accuracy.
        num_steps: Length of the run in optimizer steps.
        batch_size: Global batch size in images.
        search_steps: Length of each rate's trial, whose best is then carried on to `num_steps`;
            None tries each to the end.
        patience: A run ends early once so many steps brought no better held-out accuracy; 0 never.
        source: Labelled images; those the model was trained on if None.
        augmentation: Functions of (images, seeds), applied in order to training images.
        from_scratch: Fresh weights in the model's shape, for comparison.
        num_masks: Masks whose majority decides, for masked models.
        num_train: Use so many random training images; all if None.
        seed: Fixes order, augmentation, masks and fresh weights.
        precision, quantize_on: As in `train`.

    Raises:
        InputError: The configuration, the model or the data is wrong.

    Source: paper, sections 2.3 and 3.4.
    """
    model = SavedModel(saved_model)
    on_device = running.quantizes_on_device("finetune.quantize_on", quantize_on)
    strategies.check_batch_size(strategy, batch_size, step_options.gradient_accumulation_steps)
    running.set_precision("finetune.precision", precision)
    source = resolve_source(model, source, "finetune")
    splits = labelled_splits(source, num_train, seed)
    generative = objective_from_config(model.metadata["objective"])
    objective = build_objective(generative=generative)
    search_steps = _checked_steps(num_steps, search_steps, intervals)
    for length in (num_steps, search_steps):
        intervals.check(length, step_options.steps_per_execution)
    profiling.check_steps(intervals.profile_steps, num_steps)
    with strategy.scope():
        _check_rates(learning_rates, build_optimizer)
    config.refuse_unread_bindings()
    augmentations.check(augmentation, source.image_size)

    folder = running.open_workdir(workdir, strategy, model.palette)
    if folder is None:
        return
    with running.guarded(workdir, strategy):
        tuning = Tuning(
            model=model,
            splits=splits,
            objective=objective,
            build_optimizer=build_optimizer,
            step_options=step_options,
            intervals=intervals,
            feed=InputPipeline(
                objective,
                model.palette,
                strategy,
                batch_size=batch_size,
                quantize_on_device=on_device,
            ),
            batch_size=batch_size,
            augmentation=augmentation,
            from_scratch=from_scratch,
            masks=ensemble_masks(generative, num_masks, model.image_size),
            patience=patience,
            seed=seed,
        )
        print(_describe(source, splits, num_steps, batch_size, from_scratch))
        rows, rate = search(tuning, folder, learning_rates, search_steps)
        run = tuning.run(folder, rate, num_steps)
        _finish(folder, tuning, run, source, rows)


def _finish(folder: Workdir, tuning: Tuning, run: Run, source: Source, rows: list[dict]) -> None:
    """Measures and exports the best held-out step; ends the run."""
    step = run.checkpoints.restore_best()
    splits = tuning.splits
    parts = {name: tuning.feed.evaluation_batches(part) for name, part in splits if name != "train"}
    scores = {name: run.scorer.score(batches) for name, batches in parts.items()}
    if not folder.is_chief:
        return
    if "test" in scores:
        _note_test(folder, step, scores["test"])
    task = {
        **tuning.objective.get_config(),
        "learning_rate": run.learning_rate,
        "from_scratch": tuning.from_scratch,
    }
    names = source.class_names or tuple(str(label) for label in range(splits.num_classes))
    classifier = run.trainer.model
    write_classifier(
        running.in_float32(classifier, tuning.new_classifier),
        tuning.model.palette,
        folder.file("export", str(step)),
        masks=tuning.masks,
        task=task,
        objective=tuning.objective.generative.get_config(),
        data=source.description,
        class_names=names,
        step=step,
        nats_per_token=scores["valid"].nats_per_token,
    )
    result = {
        "saved_model": tuning.model.path,
        "data": source.description,
        "num_images": splits.sizes,
        "num_classes": splits.num_classes,
        "measured_on": splits.measured_on,
        "step": step,
        **task,
        "accuracy": {name: score.accuracy for name, score in scores.items()},
        "class_nats": {name: score.class_nats for name, score in scores.items()},
        "nats_per_token": {name: score.nats_per_token for name, score in scores.items()},
        "search": rows,
        "parameters": classifier.count_params(),
        "export": f"export/{step}",
    }
    _write_confusion(folder, result, scores[splits.measured_on].confusion, names)
    folder.write_result(result)
    print(f"{summary.of_finetune(result)}\nSavedModel: {folder.file('export', str(step))}")


def _note_test(folder: Workdir, step: int, scores: Scores) -> None:
    note_test(
        folder.file("metrics.jsonl"),
        step,
        accuracy=scores.accuracy,
        class_nats=scores.class_nats,
        nats_per_token=scores.nats_per_token,
    )


def _write_confusion(folder: Workdir, result: dict, confusion, names) -> None:
    part = result["measured_on"]
    report = {"part": part, "class_names": list(names), "confusion": confusion}
    write_json(folder.file("confusion.json"), report)
    title = f"{result['data']['name']}, {percent(result['accuracy'][part])} right"
    plots.confusion(folder.file("confusion.png"), confusion, names, title)


def _checked_steps(num_steps: int, search_steps: int | None, intervals: Intervals) -> int:
    """The length of a trial."""
    search_steps = num_steps if search_steps is None else min(search_steps, num_steps)
    if search_steps < 1:
        raise InputError(
            f"a run and a trial have at least one step. Received: {num_steps=}, {search_steps=}"
        )
    if intervals.evaluate_every < 1:
        raise InputError(
            "fine-tuning chooses by held-out accuracy, so it must be measured. "
            f"Received: intervals.evaluate_every={intervals.evaluate_every}"
        )
    return search_steps


def _check_rates(learning_rates: list[float], build_optimizer) -> None:
    """Raises: InputError, also from the optimizer, unless every rate makes one, and no other."""
    if not learning_rates or len(set(learning_rates)) < len(learning_rates):
        raise InputError(f"at least one learning rate, and each once. Received: {learning_rates=}")
    for rate in learning_rates:
        build_optimizer(learning_rate=rate)


def _describe(
    source: Source, splits: Splits, num_steps: int, batch_size: int, from_scratch: bool
) -> str:
    """What is about to happen, in one line."""
    sizes = ", ".join(f"{size:,} {name}" for name, size in splits.sizes.items())
    start = "fresh" if from_scratch else "pretrained"
    return (
        f"{source.name}: {sizes} images of {splits.num_classes} classes; {start} weights, "
        f"{num_steps:,} steps of {batch_size}"
    )
