"""`train`, the root that gin configures: builds the parts, runs the loop, exports the result."""

import dataclasses
import sys
from collections.abc import Callable, Sequence

import gin
import keras
import tensorflow as tf
from tqdm import tqdm

from igpt_tf import config, runtime
from igpt_tf.data import Source
from igpt_tf.data import augmentation as augmentations
from igpt_tf.data.augmentation import Augmentation
from igpt_tf.data.input_pipeline import InputPipeline, subset
from igpt_tf.errors import InputError, check_choice
from igpt_tf.formatting import table
from igpt_tf.model import ImageGPT, abstract_model
from igpt_tf.objectives import Objective
from igpt_tf.palette import Palette, check_palette
from igpt_tf.savedmodel.write import write_pretrained
from igpt_tf.training import strategies
from igpt_tf.training.baselines import token_baselines
from igpt_tf.training.callbacks import (
    Baselines,
    Evaluate,
    Intervals,
    OnlineProbe,
    Profile,
    Progress,
    SampleImages,
    SaveCheckpoint,
)
from igpt_tf.training.checkpoints import newest_step
from igpt_tf.training.initial_model import InitialModel
from igpt_tf.training.loop import TrainingLoop
from igpt_tf.training.mesh import ShardedStrategy
from igpt_tf.training.sharding import ShardedTrainer, check_step_options
from igpt_tf.training.summaries import append_test
from igpt_tf.training.trainer import (
    WEIGHTS,
    StepOptions,
    Trainer,
    quantizes_on_device,
    set_precision,
)
from igpt_tf.training.utilization import peak_images_per_second
from igpt_tf.training.workdir import Workdir, check_run, full_disk_error, open_run

_NUM_BASELINE_IMAGES = 20_000


@gin.configurable
def train(
    *,
    workdir: str | None,
    source: Source,
    palette: Palette,
    objective: Objective,
    build_model: Callable[..., ImageGPT],
    build_optimizer: Callable[..., keras.optimizers.Optimizer],
    strategy: tf.distribute.Strategy | ShardedStrategy,
    step_options: StepOptions,
    intervals: Intervals,
    num_steps: int,
    batch_size: int,
    initial_model: str | None = None,
    seed: int = 0,
    augmentation: Sequence[Augmentation] = (),
    precision: str = "float32",
    quantize_on: str = "auto",
    export: str = "best",
    weights: str = "trained",
    num_rewinds: int = 0,
    allow_changed_data: bool = False,
    dry_run: bool = False,
) -> None:
    """Pretrains a model, or continues, and exports it. Durations are optimizer steps.

    Args:
        workdir: Folder of the run. A run with checkpoints is resumed. A finished one is left alone,
            unless `num_steps` is now higher or `export` another: it is then lengthened, or
            exported again.
        source: Training and held-out images.
        palette: Palette; its size is the model's vocabulary size.
        objective: Pretraining objective.
        build_model: Function (image_size, causal) -> model.
        build_optimizer: Function (num_steps, steps_per_epoch) -> optimizer.
        strategy: Devices to train on.
        step_options: How a step is executed.
        intervals: Periods of logging, evaluation, checkpoints and sample images.
        num_steps: Length of the run.
        batch_size: Global batch size in images.
        initial_model: Path of a pretrained model whose weights the run starts from, with a new
            optimizer state. Palette, objective and sizes must be its own; for another image size
            its position embeddings are interpolated. None starts from random weights.
        seed: Seed of the initial weights, order, augmentation and masks.
        augmentation: Functions (images, seeds) -> images, applied in order.
        precision: "float32", or "mixed_bfloat16": matrix products in bfloat16; weights, norms,
            softmax, logits and loss in float32.
        quantize_on: Where the palette is applied: "host", "device", or "auto": on the device if
            there is an accelerator.
        export: "best" exports the step with the lowest held-out loss, "last" the last step.
        weights: Evaluates and exports the "trained" weights, or their moving average, "averaged"
            (`build_optimizer.ema_momentum`).
        num_rewinds: Number of times that the run may return to its newest checkpoint and continue
            with other images when its loss becomes non-finite; with 0 it ends.
        allow_changed_data: Whether a run may continue although images were added, changed or
            removed since it began.
        dry_run: Builds and checks everything but the weights, loads one batch and prints the plan;
            trains and writes nothing.

    Raises:
        InputError: The configuration or the data is wrong, or the loss became non-finite.
    """
    initial = None if initial_model is None else InitialModel(initial_model)
    check_choice("train.export", export, ("best", "last"))
    check_choice("train.weights", weights, WEIGHTS)
    on_device = quantizes_on_device("train.quantize_on", quantize_on)
    strategies.check_batch_size(strategy, batch_size, step_options.gradient_accumulation_steps)
    intervals.check(num_steps, step_options.steps_per_execution)
    if isinstance(strategy, ShardedStrategy):
        _check_sharded(step_options, quantize_on)
        on_device = False  # DTensor has no layout for the search of the nearest colour
        intervals = _without_whole_model(intervals)
    set_precision("train.precision", precision)
    keras.utils.set_random_seed(seed)

    def new_model():
        return build_model(image_size=source.image_size, causal=objective.causal)

    abstract = abstract_model(new_model)
    if initial is not None:
        initial.check(palette, objective, abstract)
    check_palette(palette, abstract)
    with strategies.lost_worker_error(strategy), strategy.scope():
        steps_per_epoch = -(-len(source.train) // batch_size)
        optimizer = build_optimizer(num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    if weights == "averaged" and not optimizer.use_ema:
        raise InputError(
            "there is no average of the weights to export; set build_optimizer.ema_momentum, for "
            f"example to 0.999. Received: train.weights={weights!r}"
        )
    config.refuse_unread_bindings()
    augmentations.check(augmentation, source.image_size)
    pipeline = InputPipeline(
        objective,
        palette,
        strategy,
        batch_size=batch_size,
        quantize_on_device=on_device,
    )

    def train_batches(first_step, seed):
        return pipeline.train_batches(
            source.train,
            seed=seed,
            first_step=first_step,
            augmentation=augmentation,
            steps_per_execution=step_options.steps_per_execution,
        )

    print(_plan(abstract, source, num_steps, batch_size))
    if initial is not None:
        print(initial.summary(source.image_size))
    if dry_run:
        check_run(workdir, palette, source, allow_changed_data=allow_changed_data)
        _print_precision_advice(precision)
        with strategy.scope():
            next(train_batches(0, seed))
            pipeline.evaluation_batches(source.valid)
        return

    folder = open_run(workdir, strategy, palette, source, allow_changed_data=allow_changed_data)
    if folder is None:
        return
    if folder.is_chief and folder.length_before is not None:
        print(_new_schedule(folder, build_optimizer, num_steps, steps_per_epoch))
    with full_disk_error(workdir), strategies.lost_worker_error(strategy), strategy.scope():
        options = {"batch_size": batch_size, "weights": weights, **dataclasses.asdict(step_options)}
        trainer = _new_trainer(
            new_model, objective, optimizer, palette, strategy, initial, **options
        )
        print(_memory(trainer))
        heldout = subset(source.valid, intervals.num_heldout_images)
        every = step_options.steps_per_execution
        baselines = _baselines(source, palette) if folder.is_chief else {}
        peak = peak_images_per_second(abstract, precision, strategy.num_replicas_in_sync)
        loop = TrainingLoop(
            folder,
            trainer,
            train_batches,
            [
                Profile(intervals.profile_steps, every=every),
                Progress(intervals.log_every, every=every, peak_images_per_second=peak),
                Baselines(baselines),
                Evaluate(intervals.evaluate_every, pipeline.evaluation_batches(heldout)),
                OnlineProbe(intervals.probe_every, source, intervals.num_probe_images),
                SampleImages(intervals.sample_every, source.valid, seed=seed),
                SaveCheckpoint(intervals.checkpoint_every),
            ],
            num_steps=num_steps,
            seed=seed,
            keep_checkpoints=intervals.keep_checkpoints,
            num_rewinds=num_rewinds,
        )
        loop.run()
        if export == "best" and intervals.evaluate_every:
            best_step = loop.checkpoints.restore_best()
            _finish(folder, trainer, pipeline, source, baselines, initial, best_step)
        else:
            with trainer.evaluation_weights():
                _finish(folder, trainer, pipeline, source, baselines, initial, num_steps)


def _check_sharded(step_options: StepOptions, quantize_on: str) -> None:
    """Raises: InputError: A sharded run does not support an option."""
    check_step_options(step_options.jit_compile, step_options.steps_per_execution)
    if quantize_on == "device":
        raise InputError(
            "sharded_strategy applies the palette on the host; remove the binding. Received: "
            f"train.quantize_on={quantize_on!r}"
        )


def _new_trainer(
    new_model: Callable[[], ImageGPT],
    objective: Objective,
    optimizer: keras.optimizers.Optimizer,
    palette: Palette,
    strategy: tf.distribute.Strategy | ShardedStrategy,
    initial: InitialModel | None,
    **options,
) -> Trainer | ShardedTrainer:
    """The trainer for a strategy, with random weights or those of the initial model."""
    if isinstance(strategy, ShardedStrategy):
        return ShardedTrainer(
            new_model, objective, optimizer, palette, strategy, initial_model=initial, **options
        )
    model = new_model()
    if initial is not None:
        initial.assign_to(model)
    return Trainer(model, objective, optimizer, palette, **options)


def _finish(
    folder: Workdir,
    trainer: Trainer,
    pipeline: InputPipeline,
    source: Source,
    baselines: dict[str, float],
    initial: InitialModel | None,
    step: int,
) -> None:
    """Evaluates and exports the model's current weights, those of `step`; ends the run."""
    splits = {"valid": source.valid, "test": source.test}
    nats = {
        name: trainer.evaluate(_with_progress_bar(pipeline, examples, name))
        for name, examples in splits.items()
        if examples is not None
    }
    model = trainer.export_model(lambda: ImageGPT(**trainer.model.architecture))
    if not folder.is_chief:
        return
    if "test" in nats:
        append_test(folder.file("metrics.jsonl"), step, nats_per_token=nats["test"])
    palette = trainer.palette
    exported = folder.file("export", str(step))
    write_pretrained(
        model,
        palette,
        exported,
        objective=trainer.objective.get_config(),
        data={**source.description, "fingerprint": source.fingerprint()},
        class_names=source.class_names,
        step=step,
        nats_per_token=nats["valid"],
        initial_model=initial and initial.description,
    )
    folder.remove_exports_after(step)
    result = {
        "step": step,
        "nats_per_token": nats,
        "loss_name": trainer.objective.loss_name,
        "num_images": {
            name: len(examples)
            for name, examples in {"train": source.train, **splits}.items()
            if examples is not None
        },
        "baselines": baselines,
        "parameters": model.count_params(),
        "export": f"export/{step}",
    }
    folder.write_result(result)
    print(f"{_summary(result)}\nSavedModel: {exported}")


def _new_schedule(
    folder: Workdir, build_optimizer: Callable, num_steps: int, steps_per_epoch: int
) -> str:
    """The learning rates of a run that is lengthened, before and now, in one line."""
    before = folder.length_before
    step = newest_step(folder.shared_file("checkpoints"))
    rates = []
    for length in (before, num_steps):
        optimizer = build_optimizer(num_steps=length, steps_per_epoch=steps_per_epoch)
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    return (
        f"lengthened from {before:,} to {num_steps:,} steps: from step {step:,} on, the learning "
        f"rate follows the schedule of {num_steps:,} steps, {rates[1]:.3g} at step {step:,} "
        f"(that of {before:,} steps: {rates[0]:.3g}); the optimizer's state is kept"
    )


def _without_whole_model(intervals: Intervals) -> Intervals:
    """The intervals of a sharded run: without what needs the whole model on one device."""
    if intervals.sample_every or intervals.probe_every:
        print("sharded_strategy: no sample images and no online probe, which need the whole model")
    return dataclasses.replace(intervals, sample_every=0, probe_every=0)


def _with_progress_bar(pipeline: InputPipeline, examples, name: str):
    """Batches of an evaluation, with a progress bar."""
    return tqdm(
        pipeline.evaluation_batches(examples),
        desc=f"evaluate {name}",
        total=-(-len(examples) // pipeline.batch_size),
        unit="batch",
        leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )


def _baselines(source: Source, palette: Palette) -> dict[str, float]:
    train_tokens, heldout_tokens = (
        palette.encode(subset(examples, _NUM_BASELINE_IMAGES).arrays()[0])
        for examples in (source.train, source.valid)
    )
    return token_baselines(train_tokens, heldout_tokens, len(palette))


def _print_precision_advice(precision: str) -> None:
    """Prints a line if the other precision suits the processor better; none with accelerators."""
    is_faster = runtime.bfloat16_is_faster()
    if precision == "mixed_bfloat16" and not is_faster:
        print("mixed_bfloat16 is slower than float32 on processors without instructions for it")
    elif precision == "float32" and is_faster and not runtime.has_accelerator():
        print("train.precision = 'mixed_bfloat16' is faster on this processor from width 256 on")


def _plan(abstract: ImageGPT, source: Source, num_steps: int, batch_size: int) -> str:
    """What is about to happen, in one line."""
    height, width = source.image_size
    return (
        f"{source.name}: {len(source.train):,} training and {len(source.valid):,} held-out images "
        f"of {height}x{width}; {abstract.count_params():,} weights, "
        f"{abstract.num_layers} layers of width {abstract.hidden_dim}; "
        f"{num_steps:,} steps of {batch_size}"
    )


def _memory(trainer: Trainer) -> str:
    """Memory of one device between two steps, in one line."""
    weights, state = (size / 1e6 for size in trainer.bytes_per_device())
    return f"memory per device: {weights:,.1f} MB of weights, {state:,.1f} MB of optimizer state"


def _summary(result: dict) -> str:
    """The result as a table: the model's loss per split, then the baselines."""
    names = {"valid": "held-out", "test": "test"}
    rows = [
        [f"model at step {result['step']:,}, {names[split]}", f"{nats:.4f}"]
        for split, nats in result["nats_per_token"].items()
    ]
    rows += [
        [f"baseline, {name.replace('_', ' ')}", f"{nats:.4f}"]
        for name, nats in result["baselines"].items()
    ]
    return table(["pretraining", result["loss_name"]], rows)
