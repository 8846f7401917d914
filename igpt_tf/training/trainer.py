"""The step: what happens to one batch. It knows nothing of intervals, files or time."""

import dataclasses
from collections.abc import Iterable
from contextlib import nullcontext

import gin
import keras
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.palette import Palette
from igpt_tf.training import elementwise, strategies
from igpt_tf.training.one_trace import OneTrace

_POSITIONS = 1024  # of a core at a time: never slower than its whole share, up to 3 % faster


@gin.register("step_options")
@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step is carried out.

    Attributes:
        gradient_accumulation_steps: Parts a replica's share of a batch is cut into, one after the
            other in memory, before the one optimizer step. None cuts on CPUs only, so that a core
            has about a thousand positions at a time, which take less memory and lie in its caches.
        clip_norm: Largest global norm of the whole batch's gradient; None does not clip.
        jit_compile: Whether XLA compiles the forward and backward pass; None compiles where there
            is an accelerator (on CPUs TensorFlow's own kernels are faster).
        steps_per_execution: Optimizer steps the host asks for at once: more than 1 where a step is
            so short that the host's work between two steps shows, as on a TPU.
    """

    gradient_accumulation_steps: int | None = None
    clip_norm: float | None = None
    jit_compile: bool | None = None
    steps_per_execution: int = 1


class Trainer:
    """One optimizer step and one evaluation, on any `tf.distribute` strategy.

    Build it, the model and the optimizer inside `strategy.scope()`.

    Args:
        model: An `ImageGPT`.
        objective: `Autoregressive`, `Masked` or, with labels in the batches, `Joint`.
        optimizer: A Keras optimizer; its variables are created here.
        palette: Encodes images that arrive without tokens, on the device.
        batch_size: The global batch size.
        gradient_accumulation_steps, clip_norm, jit_compile, steps_per_execution: See `StepOptions`.

    Raises:
        InputError: The batch does not cut evenly into replicas and their parts.
    """

    def __init__(
        self,
        model: keras.Model,
        objective,
        optimizer: keras.optimizers.Optimizer,
        palette: Palette,
        *,
        batch_size: int,
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
        jit_compile = runtime.has_accelerator() if jit_compile is None else jit_compile
        network = model.network if objective.uses_labels else model
        self._blocks = nullcontext if jit_compile else OneTrace(network).in_use
        looped = not jit_compile and elementwise.worthwhile(network)
        self._loops = elementwise.in_loops if looped else nullcontext
        at_once = runtime.num_parallel_ops() // strategies.local_replicas(self.strategy)
        self._most_branches = 1 if jit_compile else max(1, at_once)
        self.gradient_accumulation_steps = gradient_accumulation_steps or self._few_positions(
            network.sequence_length
        )
        optimizer.build(model.trainable_variables)
        # Only forward and backward are compiled: an apply inside XLA fails on mirrored replicas.
        self._gradients = tf.function(self._accumulated_gradients, jit_compile=jit_compile)
        self._score = tf.function(self._image_nats, jit_compile=jit_compile)

    def _few_positions(self, length: int) -> int:
        """Parts of a replica's share in which each branch has as many images, and few positions."""
        images, left = divmod(
            self.batch_size, self.strategy.num_replicas_in_sync * self._most_branches
        )
        if left or self._most_branches == 1:
            return 1
        return runtime.largest_divisor(images, images * length // _POSITIONS)

    @tf.function
    def train_step(self, batch: dict) -> tf.Tensor:
        """Takes one optimizer step, or `steps_per_execution` of them.

        Args:
            batch: {"tokens": int32[b,T]} or {"images": uint8[b,H,W,3]} with the objective's
                draws; b is the share of one replica. With several steps per call, a leading axis
                holds their batches.

        Returns:
            nats_per_token float32[], the mean over the global batch before the step, or the mean
            of those of all steps.
        """
        if self.steps_per_execution == 1:
            return self._step(batch)
        losses = tf.zeros([])
        for i in tf.range(self.steps_per_execution):
            losses += self._step(batch, i)
        return losses / self.steps_per_execution

    def _step(self, batch, index=None):
        losses = self.strategy.run(self._replica_step, args=(batch, index))
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _replica_step(self, batch, index):
        if index is not None:
            batch = {name: x[index] for name, x in batch.items()}
        loss, gradients = self._gradients(batch)
        if self.clip_norm is not None:
            gradients = self._clipped(gradients)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return loss

    def _clipped(self, gradients):
        """Clips the gradient of the global batch, so that the number of replicas is no matter."""
        replicas = tf.distribute.get_replica_context()
        gradients = replicas.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        # Keras sums over the replicas once more.
        return [gradient / self.strategy.num_replicas_in_sync for gradient in gradients]

    def _accumulated_gradients(self, batch):
        """The loss float32[] and gradients of the replica's share, part after part."""
        if self.gradient_accumulation_steps == 1:
            return self._loss_and_gradients(batch)
        parts = {
            name: tf.reshape(x, (self.gradient_accumulation_steps, -1, *x.shape[1:]))
            for name, x in batch.items()
        }
        loss, gradients = self._loss_and_gradients({name: x[0] for name, x in parts.items()})
        for i in tf.range(1, self.gradient_accumulation_steps):
            part = self._loss_and_gradients({name: x[i] for name, x in parts.items()})
            loss, gradients = tf.nest.map_structure(tf.add, (loss, gradients), part)
        return loss, gradients

    def _loss_and_gradients(self, batch):
        variables = [variable.value for variable in self.model.trainable_variables]
        with self._loops():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                # Keras sums gradients over replicas, so the global count divides exactly once.
                loss = tf.reduce_sum(self._image_nats(batch)) / self.batch_size
            gradients = tape.gradient(loss, variables)
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    @tf.function
    def weights_are_finite(self) -> tf.Tensor:
        """Whether every weight is a number, bool[]; a step may spoil them after its loss."""
        finite = [tf.reduce_all(tf.math.is_finite(w.value)) for w in self.model.weights]
        return tf.reduce_all(tf.stack(finite))

    def evaluate(self, batches: Iterable[dict]) -> float:
        """Mean nats per token over batches that carry a "weight" float32[b] for each image."""
        total = count = 0.0
        for batch in batches:
            batch_total, batch_count = self._evaluation_step(batch)
            total += float(batch_total)
            count += float(batch_count)
        return total / count

    @tf.function
    def _evaluation_step(self, batch):
        sums = self.strategy.run(self._replica_evaluation, args=(batch,))
        return tuple(self.strategy.reduce(tf.distribute.ReduceOp.SUM, s, axis=None) for s in sums)

    def _replica_evaluation(self, batch):
        weight = batch["weight"]
        nats = self._score({key: batch[key] for key in batch if key != "weight"})
        return tf.reduce_sum(nats * weight), tf.reduce_sum(weight)

    def _image_nats(self, batch):
        """nats per token float32[b] of each image."""
        with self._blocks(), self._loops():
            return tf.concat([self._branch_nats(part) for part in self.branches(batch)], axis=0)

    def branches(self, batch: dict) -> list[dict]:
        """Parts of a batch whose operations nothing orders, so that each core can take one."""
        number = next(iter(batch.values())).shape[0]
        sizes = runtime.near_equal_sizes(number, self._most_branches)
        columns = {name: tf.split(x, sizes) for name, x in batch.items()}
        return [{name: parts[i] for name, parts in columns.items()} for i in range(len(sizes))]

    def _branch_nats(self, batch):
        unused = (
            ("tokens", "images") if self.objective.uses_labels else ("tokens", "images", "labels")
        )
        draws = {key: batch[key] for key in batch if key not in unused}
        return self.objective(self.model, self.tokens(batch), **draws)

    def tokens(self, batch: dict) -> tf.Tensor:
        """int32[b,T] of a batch, in whichever form it came."""
        return batch["tokens"] if "tokens" in batch else self.palette.encode_tensor(batch["images"])
