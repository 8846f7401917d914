"""`train`: the root that gin configures. It builds the parts, runs the loop, exports the result."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence

import gin
import keras
import tensorflow as tf
from tqdm import tqdm

import igpt_tf.objectives  # noqa: F401
from igpt_tf import config, runtime
from igpt_tf.data import Source
from igpt_tf.data import augmentation as augmentations
from igpt_tf.data.input_pipeline import InputPipeline, subset
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT, abstract_model, count_parameters
from igpt_tf.palette import Palette
from igpt_tf.sampling.sampler import Sampler
from igpt_tf.savedmodel.write import write_pretrained
from igpt_tf.training import loop, profiling, running, strategies
from igpt_tf.training.actions import Draw, Evaluate, Intervals
from igpt_tf.training.baselines import token_baselines
from igpt_tf.training.checkpoints import Checkpoints
from igpt_tf.training.online_probe import online_probe
from igpt_tf.training.optimization import averaged_weights, state_bytes
from igpt_tf.training.summaries import Summaries, note_test
from igpt_tf.training.trainer import StepOptions, Trainer
from igpt_tf.training.workdir import Workdir

_NUM_PICTURES = 8
_NUM_BASELINE_IMAGES = 20_000


@gin.configurable
def train(
    *,
    workdir: str | None,
    source: Source,
    palette: Palette,
    objective,
    build_model: Callable[..., ImageGPT],
    build_optimizer: Callable[..., keras.optimizers.Optimizer],
    strategy: tf.distribute.Strategy,
    step_options: StepOptions,
    intervals: Intervals,
    num_steps: int,
    batch_size: int,
    seed: int = 0,
    augmentation: Sequence[Callable] = (),
    precision: str = "float32",
    quantize_on: str = "auto",
    export: str = "best",
    weights: str = "trained",
    num_rewinds: int = 0,
    dry_run: bool = False,
) -> None:
    """Pretrains a model, or goes on with it, and exports it. Durations are optimizer steps.

    Args:
        workdir: Folder of the run. A folder with checkpoints is resumed, a finished one left.
        source: Training and held-out images.
        palette: Its size is the model's vocabulary.
        objective: `Autoregressive` or `Masked`.
        build_model: Called with image_size and causal.
        build_optimizer: Called with num_steps and steps_per_epoch.
        strategy: Where to run.
        step_options: How to carry out a step.
        intervals: How often to report, evaluate, save and draw.
        num_steps: Length of the run.
        batch_size: Global batch size in images.
        seed: Fixes initial weights, order, augmentation and masks.
        augmentation: Functions of (images, seeds), applied in order.
        precision: "float32", or "mixed_bfloat16": matrices in bfloat16; weights, norms, softmax,
            logits and loss stay in float32.
        quantize_on: Where the palette is applied: "host", "device", or "auto", the device where
            there is an accelerator.
        export: "best" exports the step with the lowest held-out loss, "last" the last.
        weights: Evaluates and exports the "trained" ones, or their moving average, "averaged"
            (`build_optimizer.ema_momentum`).
        num_rewinds: How often the run may go back to its newest checkpoint and on with other images
            when its loss became non-finite; 0, the default, ends it.
        dry_run: Build and check everything but the weights, load one batch, print the plan, train
            and write nothing.

    Raises:
        InputError: The configuration or the data is wrong, or the loss became non-finite.
    """
    running.check_choice("train.export", export, ("best", "last"))
    running.check_choice("train.weights", weights, ("trained", "averaged"))
    on_device = running.quantizes_on_device("train.quantize_on", quantize_on)
    strategies.check_batch_size(strategy, batch_size, step_options.gradient_accumulation_steps)
    intervals.check(num_steps, step_options.steps_per_execution)
    profiling.check_steps(intervals.profile_steps, num_steps)
    running.set_precision("train.precision", precision)
    keras.utils.set_random_seed(seed)

    def new_model():
        return build_model(image_size=source.image_size, causal=objective.causal)

    plan = abstract_model(new_model)
    _check_vocabulary(palette, plan)
    with strategy.scope():
        steps_per_epoch = -(-len(source.train) // batch_size)
        optimizer = build_optimizer(num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    if weights == "averaged" and not optimizer.use_ema:
        raise InputError(
            "there is no average of the weights to export; set build_optimizer.ema_momentum, for "
            f"example to 0.999. Received: train.weights={weights!r}"
        )
    config.refuse_unread_bindings()
    augmentations.check(augmentation, source.image_size)
    feed = InputPipeline(
        objective, palette, strategy, batch_size=batch_size, quantize_on_device=on_device
    )

    def batches(first_step, seed):
        return feed.train_batches(
            source.train,
            seed=seed,
            first_step=first_step,
            augmentation=augmentation,
            steps_per_execution=step_options.steps_per_execution,
        )

    print(_describe(plan, source, num_steps, batch_size))
    if dry_run:
        running.check_workdir(workdir, palette)
        with strategy.scope():
            next(batches(0, seed))
            feed.evaluation_batches(source.valid)
        return

    folder = running.open_workdir(workdir, strategy, palette)
    if folder is None:
        return
    with running.guarded(workdir, strategy):
        trainer = Trainer(
            new_model(),
            objective,
            optimizer,
            palette,
            batch_size=batch_size,
            **dataclasses.asdict(step_options),
        )
        print(_memory(trainer))
        exported = contextlib.nullcontext
        if weights == "averaged":
            exported = functools.partial(averaged_weights, trainer.model, optimizer)
        checkpoints = running.take_steps(
            folder,
            trainer,
            batches,
            intervals,
            num_steps=num_steps,
            seed=seed,
            actions=_beside(folder, trainer, feed, source, intervals, seed, exported),
            num_rewinds=num_rewinds,
        )
        if export == "best" and intervals.evaluate_every:
            _finish(folder, trainer, feed, source, checkpoints.restore_best())
        else:
            with exported():
                _finish(folder, trainer, feed, source, num_steps)


def _beside(
    folder: Workdir,
    trainer: Trainer,
    feed: InputPipeline,
    source: Source,
    intervals: Intervals,
    seed: int,
    exported: Callable[[], contextlib.AbstractContextManager],
):
    """What `running.take_steps` does beside the steps: the held-out loss, a probe, pictures."""

    def actions(checkpoints: Checkpoints, summaries: Summaries) -> list[loop.Periodic]:
        heldout = feed.evaluation_batches(subset(source.valid, intervals.num_heldout_images))
        draw = Draw(
            Sampler(trainer.model, jit_compile=runtime.has_accelerator()),
            trainer.palette,
            trainer.palette.encode(subset(source.valid, _NUM_PICTURES).arrays()[0]),
            trainer.objective,
            summaries,
            lambda step: folder.file("samples", f"step_{step}.png"),
            seed=seed,
        )
        evaluate = Evaluate(trainer, heldout, checkpoints, summaries, exported)
        probe = None
        if intervals.probe_every and folder.is_chief:
            probe = online_probe(trainer, source, intervals.num_probe_images, summaries, exported)
        return [
            loop.Periodic(intervals.evaluate_every, evaluate),
            loop.Periodic(intervals.probe_every if probe else 0, probe),
            loop.Periodic(intervals.sample_every if folder.is_chief else 0, draw),
        ]

    return actions


def _finish(
    folder: Workdir, trainer: Trainer, feed: InputPipeline, source: Source, step: int
) -> None:
    """Scores and exports the weights that the model holds, those of `step`; ends the run."""
    splits = {"valid": source.valid, "test": source.test}
    nats = {
        name: trainer.evaluate(_watched(feed, examples, name))
        for name, examples in splits.items()
        if examples is not None
    }
    if not folder.is_chief:
        return
    if "test" in nats:
        note_test(folder.file("metrics.jsonl"), step, nats_per_token=nats["test"])
    palette = trainer.palette
    write_pretrained(
        running.in_float32(trainer.model, lambda: ImageGPT(**trainer.model.architecture)),
        palette,
        folder.file("export", str(step)),
        objective=trainer.objective.get_config(),
        data=source.description,
        class_names=source.class_names,
        step=step,
        nats_per_token=nats["valid"],
    )
    folder.write_result(
        {
            "step": step,
            "nats_per_token": nats,
            "baselines": _baselines(source, palette),
            "parameters": trainer.model.count_params(),
            "export": f"export/{step}",
        }
    )
    print(f"nats/token at step {step}: {nats}\nSavedModel: {folder.file('export', str(step))}")


def _watched(feed: InputPipeline, examples, name: str):
    """The batches of an evaluation, under a progress bar."""
    return tqdm(
        feed.evaluation_batches(examples),
        desc=f"score {name}",
        total=-(-len(examples) // feed.batch_size),
        unit="batch",
        leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )


def _baselines(source: Source, palette: Palette) -> dict[str, float]:
    train, heldout = (
        palette.encode(subset(examples, _NUM_BASELINE_IMAGES).arrays()[0])
        for examples in (source.train, source.valid)
    )
    return token_baselines(train, heldout, len(palette))


def _describe(plan: ImageGPT, source: Source, num_steps: int, batch_size: int) -> str:
    """What is about to happen, in one line."""
    height, width = source.image_size
    return (
        f"{source.name}: {len(source.train):,} training and {len(source.valid):,} held-out images "
        f"of {height}x{width}; {count_parameters(lambda: plan):,} weights, "
        f"{plan.num_layers} layers of width {plan.hidden_dim}; {num_steps:,} steps of {batch_size}"
    )


def _memory(trainer: Trainer) -> str:
    """What a replica holds between two steps, in one line."""
    weights = 4 * trainer.model.count_params() / 1e6
    state = state_bytes(trainer.optimizer) / 1e6
    return f"memory a replica: {weights:,.1f} MB of weights, {state:,.1f} MB of optimizer state"


def _check_vocabulary(palette: Palette, plan: ImageGPT) -> None:
    if len(palette) != plan.vocabulary_size:
        raise InputError(
            "the palette's size is the model's vocabulary; set build_model.vocabulary_size to "
            f"{len(palette)} or choose another palette. "
            f"Received: vocabulary_size={plan.vocabulary_size}, palette={len(palette)} colours"
        )
