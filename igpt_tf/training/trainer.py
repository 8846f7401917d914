"""One optimizer step and one evaluation of a model. No intervals, files or clocks here."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable

import gin
import keras
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.errors import check_choice
from igpt_tf.palette import Palette
from igpt_tf.training import strategies
from igpt_tf.training.checkpoints import Checkpoints
from igpt_tf.training.compilation import Compilation
from igpt_tf.training.optimization import averaged_weights
from igpt_tf.training.workdir import Workdir

WEIGHTS = ("trained", "averaged")


@gin.register("step_options")
@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step is executed.

    Attributes:
        gradient_accumulation_steps: Number of microbatches into which a replica's share of a batch
            is divided; their gradients are added before the one optimizer step. None divides on
            CPUs only, so that a core computes about a thousand positions at a time.
        clip_norm: Maximum global norm of the whole batch's gradient; None does not clip.
        jit_compile: Whether XLA compiles the forward and backward pass; None compiles where there
            is an accelerator (on CPUs TensorFlow's own kernels are faster).
        steps_per_execution: Optimizer steps per call from the host: more than 1 where a step is so
            short that the host's work between two steps shows, as on a TPU.
    """

    gradient_accumulation_steps: int | None = None
    clip_norm: float | None = None
    jit_compile: bool | None = None
    steps_per_execution: int = 1


class Trainer:
    """Trains and evaluates a model on any `tf.distribute` strategy.

    Build it, the model and the optimizer inside `strategy.scope()`.

    Args:
        model: An `ImageGPT`, or a `Classifier`.
        objective: An `Objective`, or `Joint` for a `Classifier`.
        optimizer: A Keras optimizer; its variables are created here.
        palette: Palette that encodes images that arrive without tokens, on the device.
        batch_size: Global batch size.
        weights: Weights to evaluate, "trained" or "averaged".
        gradient_accumulation_steps, clip_norm, jit_compile, steps_per_execution: See `StepOptions`.

    Attributes:
        gradient_norm: Global norm of the gradient of the last step, before clipping, float32[]. It
            remains on the device, as the loss does. NaN with several replicas unless they clip:
            gradients are summed inside the optimizer, and summing them twice would slow the step.

    Raises:
        InputError: The batch does not divide evenly into replicas and microbatches.

    Example:
        trainer = Trainer(model, Autoregressive(), keras.optimizers.Adam(), palette, batch_size=8)
        loss = trainer.train_step({"tokens": tokens})
    """

    def __init__(
        self,
        model: keras.Model,
        objective,
        optimizer: keras.optimizers.Optimizer,
        palette: Palette,
        *,
        batch_size: int,
        weights: str = "trained",
        gradient_accumulation_steps: int | None = None,
        clip_norm: float | None = None,
        jit_compile: bool | None = None,
        steps_per_execution: int = 1,
    ):
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.palette = palette
        self.batch_size = batch_size
        self.clip_norm = clip_norm
        self.steps_per_execution = steps_per_execution
        self.strategy = tf.distribute.get_strategy()
        strategies.check_batch_size(self.strategy, batch_size, gradient_accumulation_steps)
        self.compilation = Compilation(
            model.network if objective.uses_labels else model,
            self.strategy,
            batch_size=batch_size,
            jit_compile=jit_compile,
        )
        self.num_microbatches = gradient_accumulation_steps or self.compilation.num_microbatches
        self.gradient_norm = math.nan
        self._averages = weights == "averaged"
        optimizer.build(model.trainable_variables)
        # Only forward and backward are compiled: the optimizer's update fails inside XLA on
        # mirrored replicas.
        self._gradients = self.compilation.compile(self._accumulated_gradients)
        self._score = self.compilation.compile(self._image_nats)

    def train_step(self, batch: dict) -> tf.Tensor:
        """Takes one optimizer step, or `steps_per_execution` of them.

        Args:
            batch: {"tokens": int32[b,T]} or {"images": uint8[b,H,W,3]} with the objective's
                random inputs; b is the share of one replica. With several steps per call, a leading
                axis holds their batches.

        Returns:
            nats_per_token float32[]: mean over the global batch before the step, or the mean of
            those of all steps.
        """
        loss, self.gradient_norm = self._steps(batch)
        return loss

    @tf.function(autograph=False)
    def _steps(self, batch):
        """Mean loss of the steps of one call, and gradient norm of the last, float32[] each."""
        if self.steps_per_execution == 1:
            return self._step(batch)

        def add_step(index, losses, _):
            loss, norm = self._step(batch, index)
            return index + 1, losses + loss, norm

        _, losses, norm = tf.while_loop(
            lambda index, *_: index < self.steps_per_execution,
            add_step,
            (tf.constant(0), tf.zeros([]), tf.zeros([])),
        )
        return losses / self.steps_per_execution, norm

    def _step(self, batch, index=None):
        losses, norms = self.strategy.run(self._replica_step, args=(batch, index))
        loss = self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
        return loss, self.strategy.experimental_local_results(norms)[0]

    def _replica_step(self, batch, index):
        if index is not None:
            batch = {name: x[index] for name, x in batch.items()}
        loss, gradients = self._gradients(batch)
        if self.clip_norm is not None:
            gradients, norm = self._clip(gradients)
        elif self.strategy.num_replicas_in_sync == 1:
            norm = tf.linalg.global_norm(gradients)
        else:
            norm = tf.constant(math.nan)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return loss, norm

    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))

    def _clip(self, gradients):
        """Clips the gradient of the global batch, independently of the number of replicas.

        Returns:
            (gradients whose sum over the replicas is the clipped one, norm before clipping).
        """
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients, norm = tf.clip_by_global_norm(gradients, self.clip_norm)
        # The optimizer sums over the replicas once more.
        replicas = self.strategy.num_replicas_in_sync
        return [gradient / replicas for gradient in gradients], norm

    def _accumulated_gradients(self, batch):
        """Loss float32[] and gradients of the replica's share, one microbatch after the other."""
        if self.num_microbatches == 1:
            return self._loss_and_gradients(batch)
        microbatches = {
            name: tf.reshape(x, (self.num_microbatches, -1, *x.shape[1:]))
            for name, x in batch.items()
        }

        def microbatch(index):
            return self._loss_and_gradients({name: x[index] for name, x in microbatches.items()})

        def add_microbatch(index, *sums):
            loss, gradients = microbatch(index)
            added = [tf.add(a, b) for a, b in zip(sums, [loss, *gradients], strict=True)]
            return index + 1, *added

        loss, gradients = microbatch(0)
        _, loss, *gradients = tf.while_loop(
            lambda index, *_: index < self.num_microbatches,
            add_microbatch,
            (tf.constant(1), loss, *gradients),
        )
        return loss, gradients

    def _loss_and_gradients(self, batch):
        variables = [variable.value for variable in self.model.trainable_variables]
        with self.compilation.tracing():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                # The optimizer sums gradients over replicas: divide by the global count, once.
                loss = tf.reduce_sum(self._image_nats(batch)) / self.batch_size
            gradients = tape.gradient(loss, variables)
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    @tf.function(autograph=False)
    def weights_are_finite(self) -> tf.Tensor:
        """Whether every weight is finite, bool[]; a step may spoil them after its loss."""
        finite = [tf.reduce_all(tf.math.is_finite(w.value)) for w in self.model.weights]
        return tf.reduce_all(tf.stack(finite))

    def evaluate(self, batches: Iterable[dict]) -> float:
        """Mean nats per token over batches with a "weight" float32[b] per image."""
        total = count = 0.0
        for batch in batches:
            batch_total, batch_count = self._evaluation_step(batch)
            total += float(batch_total)
            count += float(batch_count)
        return total / count

    def evaluation_weights(self) -> contextlib.AbstractContextManager:
        """Context in which the model has the weights to evaluate: the trained or averaged ones."""
        if self._averages:
            return averaged_weights(self.model, self.optimizer)
        return contextlib.nullcontext()

    def checkpoint_variables(self) -> tuple[dict, dict]:
        """(weights, optimizer state): variables by name, as checkpoints store them.

        By name, because `tf.train.Checkpoint` ignores layers that a Keras model holds in a list.
        """
        return _by_path(self.model.weights), _by_path(self.optimizer.variables)

    def new_checkpoints(self, workdir: Workdir, keep: int) -> Checkpoints:
        """The checkpoints of a run of this trainer, of which the newest `keep` are kept."""
        return Checkpoints(
            workdir.shared_file("checkpoints"),
            *self.checkpoint_variables(),
            keep=keep,
            write_to=workdir.file("checkpoints"),
        )

    def bytes_per_device(self) -> tuple[int, int]:
        """Bytes of (the weights, the optimizer state) on one device."""
        return tuple(
            sum(variable.dtype.size * variable.shape.num_elements() for variable in group.values())
            for group in self.checkpoint_variables()
        )

    def export_model(self, build_model: Callable[[], keras.Model]) -> keras.Model:
        """The model to export: the current weights, computing in float32.

        Args:
            build_model: Function () -> an equal model.
        """
        if self.model.compute_dtype == "float32":
            return self.model
        keras.config.set_dtype_policy("float32")
        exported = build_model()
        exported.set_weights(self.model.get_weights())
        return exported

    @tf.function(autograph=False)
    def _evaluation_step(self, batch):
        sums = self.strategy.run(self._replica_evaluation, args=(batch,))
        return tuple(self.strategy.reduce(tf.distribute.ReduceOp.SUM, s, axis=None) for s in sums)

    def _replica_evaluation(self, batch):
        weight = batch["weight"]
        nats = self._score({key: batch[key] for key in batch if key != "weight"})
        return tf.reduce_sum(nats * weight), tf.reduce_sum(weight)

    def _image_nats(self, batch):
        """Nats per token of each image, float32[b]."""
        with self.compilation.tracing():
            branches = self.compilation.branches(batch)
            return tf.concat([self._branch_nats(branch) for branch in branches], axis=0)

    def _branch_nats(self, batch):
        inputs = {key: x for key, x in batch.items() if key not in ("tokens", "images", "labels")}
        if self.objective.uses_labels:
            inputs["labels"] = batch["labels"]
        return self.objective(self.model, self.tokens(batch), **inputs)

    def tokens(self, batch: dict) -> tf.Tensor:
        """Tokens int32[b,T] of a batch of tokens or images."""
        return batch["tokens"] if "tokens" in batch else self.palette.encode_tensor(batch["images"])


def set_precision(name: str, precision: str) -> None:
    """Sets Keras' dtype policy. `name`: gin name of the setting. Raises: InputError."""
    check_choice(name, precision, ("float32", "mixed_bfloat16"))
    if precision == "mixed_bfloat16":
        runtime.check_bfloat16(name)
    keras.config.set_dtype_policy(precision)


def _by_path(variables) -> dict[str, tf.Variable]:
    """Variables by path, without the name of the model or optimizer."""
    return {variable.path.split("/", 1)[1]: variable.value for variable in variables}


def quantizes_on_device(name: str, quantize_on: str) -> bool:
    """Whether the palette is applied on the device. `name`: gin name. Raises: InputError."""
    check_choice(name, quantize_on, ("auto", "host", "device"))
    return quantize_on == "device" or (quantize_on == "auto" and runtime.has_accelerator())
