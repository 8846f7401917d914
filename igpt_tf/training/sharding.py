"""Fully sharded data-parallel training with DTensor, for models that no single device can hold.

Each of N devices holds 1/N of every weight and of its optimizer state, and trains on 1/N of the
batch. The weights of a block are gathered when the block runs, freed after it, and gathered again
in its backward pass; gradients are reduced to the device that holds the shard.

`ShardedTrainer` has the interface of `Trainer`, so that the loop, the callbacks, the checkpoints
and the workdir are the same.

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", stage 3; tensorflow.org/guide/dtensor_overview.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from tensorflow.experimental import dtensor

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT, abstract_model
from igpt_tf.palette import Palette
from igpt_tf.training.checkpoints import Checkpoints
from igpt_tf.training.initial_model import InitialModel
from igpt_tf.training.mesh import ShardedStrategy, local_value
from igpt_tf.training.workdir import Workdir

_NOT_RANDOM_INPUTS = ("tokens", "images", "labels", "weight")


class ShardedTrainer:
    """Trains and evaluates an `ImageGPT` whose weights are split over the devices of a mesh.

    Args:
        build_model: Function () -> model. It is called without allocating the weights; a weight's
            initial value exists on the host only while it is split.
        objective: An `Objective`.
        optimizer: From `build_optimizer`. Its settings are used; its own variables are not created.
        palette: Palette of the tokens.
        strategy: The devices.
        batch_size: Global batch size.
        initial_model: Where the initial values of the weights are read; None for random ones.
        weights: Weights to evaluate, "trained" or "averaged".
        gradient_accumulation_steps, clip_norm, jit_compile, steps_per_execution: See `StepOptions`.

    Attributes:
        gradient_norm: Global norm of the gradient of the last step, before clipping, float32[]. NaN
            without `clip_norm`: the sum over the devices, weight by weight, would slow the step.

    Raises:
        InputError: An option is not supported with shards.
    """

    def __init__(
        self,
        build_model: Callable[[], ImageGPT],
        objective,
        optimizer: keras.optimizers.Optimizer,
        palette: Palette,
        strategy: ShardedStrategy,
        *,
        batch_size: int,
        initial_model: InitialModel | None = None,
        weights: str = "trained",
        gradient_accumulation_steps: int | None = None,
        clip_norm: float | None = None,
        jit_compile: bool | None = None,
        steps_per_execution: int = 1,
    ):
        check_step_options(jit_compile, steps_per_execution)
        self.strategy = strategy
        self.objective = objective
        self.optimizer = optimizer
        self.palette = palette
        self.batch_size = batch_size
        self.clip_norm = clip_norm
        self.steps_per_execution = 1
        self.num_microbatches = gradient_accumulation_steps or 1
        self.gradient_norm = math.nan
        self._averages = weights == "averaged"
        self.model = abstract_model(build_model)
        self.model.block_runner = self._run_block
        self._weights = {w.path: self._initial_shards(w, initial_model) for w in self.model.weights}
        self._momentum = {path: self._zeros(w) for path, w in self._weights.items()}
        self._velocity = {path: self._zeros(w) for path, w in self._weights.items()}
        self._average = {}
        if optimizer.use_ema:
            self._average = {path: self._zeros(w) for path, w in self._weights.items()}
        self._iterations = strategy.variable(np.int64(0))
        self._values = {}  # weights of the pass that is being traced, by path

    def _initial_shards(
        self, weight: keras.Variable, initial_model: InitialModel | None
    ) -> dtensor.DVariable:
        """The shards of a weight's initial value, equal to that of an unsharded model."""
        if initial_model is not None:
            value = initial_model.value(weight, self.model.image_size)
        else:
            # Keras keeps the initializer of a variable that is created without storage.
            value = weight._initializer(weight.shape, dtype=weight.dtype)
        return dtensor.DVariable(self.strategy.shard(np.asarray(value)))

    def _zeros(self, weight: dtensor.DVariable) -> dtensor.DVariable:
        return dtensor.DVariable(
            dtensor.call_with_layout(tf.zeros, weight.layout, weight.shape, weight.dtype)
        )

    def train_step(self, batch: dict) -> tf.Tensor:
        """Takes one optimizer step.

        Args:
            batch: From `ShardedStrategy.distribute_datasets_from_function`.

        Returns:
            nats_per_token float32[]: mean over the global batch before the step.
        """
        loss, norm = self._compiled_step(self._microbatches(batch))
        self.gradient_norm = math.nan if norm is None else local_value(norm)
        # Separate calls: DTensor does not keep the order of two updates of a variable in a graph.
        self._iterations.assign_add(1)
        if self.optimizer.weight_decay is not None or self._average:
            self._decay_and_average()
        return local_value(loss)

    def _microbatches(self, batch: dict) -> dict:
        """name -> [A, B / A, ...]: microbatches on an axis of their own, each over all devices."""

        def split(part):
            return tf.reshape(part, (self.num_microbatches, -1, *part.shape[1:]))

        return {
            name: self.strategy.pack([split(part) for part in dtensor.unpack(x)], axis=1)
            for name, x in batch.items()
        }

    @tf.function(autograph=False)
    def _compiled_step(self, microbatches: dict):
        """Loss float32[], and the gradient's norm float32[] before clipping or None."""
        loss, gradients = self._loss_and_gradients({k: x[0] for k, x in microbatches.items()})
        for i in range(1, self.num_microbatches):
            more = self._loss_and_gradients({k: x[i] for k, x in microbatches.items()})
            loss = loss + more[0]
            gradients = [a + b for a, b in zip(gradients, more[1], strict=True)]
        norm = None
        if self.clip_norm is not None:
            norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(g)) for g in gradients]))
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)
            gradients = [gradient * factor for gradient in gradients]
        # The counter is not an argument: DTensor would compile its value into the step, and compile
        # the step again for the next value.
        self._apply(gradients, self._iterations.read_value())
        return loss, norm

    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.optimizer.rate_at(local_value(self._iterations.read_value())))

    def _loss_and_gradients(self, batch: dict):
        paths = list(self._weights)
        shards = [self._weights[path].read_value() for path in paths]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(shards)
            nats = self._image_nats(batch, dict(zip(paths, shards, strict=True)))
            loss = tf.reduce_sum(nats) / self.batch_size
        gradients = tape.gradient(loss, shards)
        return loss, [
            # A gradient of an embedding is sparse, which DTensor cannot lay out.
            dtensor.relayout(tf.convert_to_tensor(gradient), shard.layout)
            for gradient, shard in zip(gradients, self._weights.values(), strict=True)
        ]

    def _image_nats(self, batch: dict, values: dict) -> tf.Tensor:
        """Nats per token float32[b] with the weights `values`, path -> shards."""
        self._values = values
        in_blocks = {weight.path for block in self.model.blocks for weight in block.weights}
        gathered = [
            (weight, self._gather(values[weight.path]))
            for weight in self.model.weights
            if weight.path not in in_blocks
        ]
        inputs = {name: x for name, x in batch.items() if name not in _NOT_RANDOM_INPUTS}
        with keras.StatelessScope(gathered, initialize_variables=False):
            return self.objective(self.model, batch["tokens"], **inputs)

    def _run_block(self, block, h):
        """Runs a block whose weights are gathered in the forward pass and again in the backward
        pass. With `remat` the backward pass also repeats the forward pass.

        The executor starts every operation whose inputs are there, so the shards of a block wait
        for its input, and in the backward pass for the gradient of its output; otherwise all blocks
        would be gathered at once. The control dependencies of `keras.remat` do not prevent this.
        """
        shards = [self._values[weight.path] for weight in block.weights]
        if not self.model.remat:
            return self._run_without_remat(block, self._split(h), shards)

        def gathered_block(h, shards, after):
            weights = [self._gather(_wait(shard, after), h.dtype) for shard in shards]
            with _weights_of(block, weights):
                return self._split(block(self._split(h)))

        @tf.custom_gradient
        def run(h, *shards):
            def gradient(upstream):
                upstream = self._split(upstream)
                inputs = [tf.identity(h), *(tf.identity(shard) for shard in shards)]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(inputs)
                    output = gathered_block(inputs[0], inputs[1:], after=upstream)
                return tape.gradient(output, inputs, output_gradients=upstream)

            return gathered_block(h, shards, after=h), gradient

        return run(h, *shards)

    def _run_without_remat(self, block, h, shards):
        """Keeps the activations of the block, but not its gathered matrices."""

        @tf.custom_gradient
        def multiply(x, kernel, shard):
            x = self._split(x)

            def gradient(upstream):
                upstream = self._split(upstream)
                again = self._gather(_wait(shard, upstream), x.dtype)
                rows, columns = (tf.reshape(y, (-1, y.shape[-1])) for y in (x, upstream))
                kernel_gradient = tf.matmul(rows, columns, transpose_a=True)
                # Otherwise the layout of the shard's gradient would spread to x.
                kernel_gradient = dtensor.relayout(kernel_gradient, self.strategy.replicated(2))
                below = self._split(ops.matmul(upstream, ops.transpose(again)))
                return below, None, tf.cast(kernel_gradient, shard.dtype)

            return self._split(ops.matmul(x, kernel)), gradient

        values, kernels = [], {}
        for weight, shard in zip(block.weights, shards, strict=True):
            if shard.shape.rank == 1:  # the gain of a norm
                values.append(self._gather(shard, h.dtype))
                continue
            values.append(self._gather(_wait(tf.stop_gradient(shard), h), h.dtype))
            kernels[weight.path] = values[-1], shard
        with _weights_of(block, values):
            output = block(h, matmul=lambda x, kernel: multiply(x, *kernels[kernel.path]))
        return self._split(output)

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        """Activations float[B,...], split along the batch.

        Left to itself, DTensor finds layouts in which every device computes the whole batch.
        """
        return dtensor.relayout(x, self.strategy.batch_layout(x.shape.rank))

    def _gather(self, shards: tf.Tensor, dtype=None) -> tf.Tensor:
        """All shards on every device; in mixed precision cast before they are sent."""
        shards = tf.identity(shards) if dtype is None else tf.cast(shards, dtype)
        layout = self.strategy.replicated(shards.shape.rank)
        if shards.dtype != tf.bfloat16:
            return dtensor.relayout(shards, layout)

        @tf.custom_gradient
        def gather_bits(shards):
            # The direct gather knows float16, but not bfloat16.
            gathered = dtensor.relayout(tf.bitcast(shards, tf.float16), layout)
            return tf.bitcast(gathered, tf.bfloat16), lambda upstream: upstream

        return gather_bits(shards)

    def _apply(self, gradients: list[tf.Tensor], step: tf.Tensor) -> None:
        """Adam on the shards: it is elementwise."""
        adam = self.optimizer
        count = tf.cast(step + 1, tf.float32)
        for gradient, (path, weight) in zip(gradients, self._weights.items(), strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle,
                m=self._momentum[path].handle,
                v=self._velocity[path].handle,
                beta1_power=adam.beta_1**count,
                beta2_power=adam.beta_2**count,
                lr=adam.rate_at(step),
                beta1=adam.beta_1,
                beta2=adam.beta_2,
                epsilon=adam.epsilon,
                grad=gradient,
            )

    @tf.function(autograph=False)
    def _decay_and_average(self) -> None:
        """AdamW's decay and the moving average of the weights, after the update of a step."""
        adam = self.optimizer
        step = self._iterations.read_value() - 1
        for path, weight in self._weights.items():
            value = weight.read_value()
            if adam.decays(path):
                before = value + self._update(path, step)
                value = value - adam.weight_decay * adam.rate_at(step) * before
                weight.assign(value)
            if self._average:
                # The first step starts the average, as in Keras.
                momentum = tf.where(step == 0, 0.0, adam.ema_momentum)
                old = self._average[path].read_value()
                self._average[path].assign(momentum * old + (1 - momentum) * value)

    def _update(self, path: str, step: tf.Tensor) -> tf.Tensor:
        """What Adam has subtracted from a weight in the update of `step`."""
        adam, count = self.optimizer, tf.cast(step + 1, tf.float32)
        correction = tf.sqrt(1 - adam.beta_2**count) / (1 - adam.beta_1**count)
        momentum = self._momentum[path].read_value()
        velocity = self._velocity[path].read_value()
        return adam.rate_at(step) * correction * momentum / (tf.sqrt(velocity) + adam.epsilon)

    def weights_are_finite(self) -> bool:
        """Whether every weight is finite; a step may spoil them after its loss."""
        return bool(local_value(self._finite()))

    @tf.function(autograph=False)
    def _finite(self):
        finite = [tf.reduce_all(tf.math.is_finite(w.read_value())) for w in self._weights.values()]
        return tf.reduce_all(tf.stack(finite))

    def evaluate(self, batches: Iterable[dict]) -> float:
        """Mean nats per token over batches with a "weight" float32[b] per image."""
        total = count = 0.0
        for batch in batches:
            batch_total, batch_count = self._evaluation_step(batch)
            total += float(local_value(batch_total))
            count += float(local_value(batch_count))
        return total / count

    @tf.function(autograph=False)
    def _evaluation_step(self, batch: dict):
        values = {path: weight.read_value() for path, weight in self._weights.items()}
        nats = self._image_nats(batch, values)
        return tf.reduce_sum(nats * batch["weight"]), tf.reduce_sum(batch["weight"])

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Context in which the weights are those to evaluate: the trained or averaged ones."""
        if not self._averages:
            yield
            return
        trained = {path: weight.read_value() for path, weight in self._weights.items()}
        for path, weight in self._weights.items():
            weight.assign(self._average[path].read_value())
        try:
            yield
        finally:
            for path, weight in self._weights.items():
                weight.assign(trained[path])

    def checkpoint_variables(self) -> tuple[dict, dict]:
        """(weights, optimizer state) by name; the names are those of an unsharded run."""
        slots = {"momentum": self._momentum, "velocity": self._velocity, "average": self._average}
        state = {"iteration": self._iterations}
        for slot, variables in slots.items():
            for path, variable in variables.items():
                state[f"{path.replace('/', '_')}_{slot}"] = variable
        weights = {path.split("/", 1)[1]: weight for path, weight in self._weights.items()}
        return weights, state

    def new_checkpoints(self, workdir: Workdir, keep: int) -> Checkpoints:
        """The checkpoints of a run of this trainer, of which the newest `keep` are kept.

        Every process writes its shards into the same folder.
        """
        return Checkpoints(
            workdir.shared_file("checkpoints"),
            *self.checkpoint_variables(),
            keep=keep,
            removes_old=workdir.is_chief,
            new_variable=self.strategy.variable,
            any_worker=self.strategy.any_worker,
            part_to_check=(self.strategy.worker_index, self.strategy.num_workers),
        )

    def bytes_per_device(self) -> tuple[int, int]:
        """Bytes of (the weights, the optimizer state) on one device."""
        return tuple(
            sum(_bytes_per_device(variable) for variable in group.values())
            for group in self.checkpoint_variables()
        )

    def export_model(self, build_model: Callable[[], ImageGPT]) -> ImageGPT | None:
        """The whole model, gathered weight by weight, in float32.

        Args:
            build_model: Function () -> an equal model with storage.

        Returns:
            The model on the chief, which must have memory for the weights once; None elsewhere.
        """
        is_chief = self.strategy.worker_index == 0
        keras.config.set_dtype_policy("float32")
        model = build_model() if is_chief else None
        targets = {weight.path: weight for weight in model.weights} if is_chief else {}
        for path, weight in self._weights.items():
            value = local_value(
                dtensor.relayout(weight, self.strategy.replicated(weight.shape.rank))
            )
            if is_chief:
                targets[path].assign(value)
        return model


def _weights_of(block, weights: list[tf.Tensor]) -> keras.StatelessScope:
    """Context in which the weights of a block have these values."""
    values = list(zip(block.weights, weights, strict=True))
    return keras.StatelessScope(values, initialize_variables=False)


def _wait(shards: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    """`shards`, computed not before `after`: a data dependency, without effect on finite values."""
    is_infinite = tf.math.is_inf(tf.reduce_max(after))
    return shards + tf.cast(is_infinite, shards.dtype)


def _bytes_per_device(variable: dtensor.DVariable) -> int:
    shards = 1 if variable.layout.is_fully_replicated() else variable.layout.mesh.size
    return variable.dtype.size * variable.shape.num_elements() // shards


def check_step_options(jit_compile: bool | None, steps_per_execution: int) -> None:
    """Raises: InputError: An option has no effect with shards."""
    if jit_compile:
        raise InputError(
            "sharded_strategy does not compile with XLA; remove the binding. Received: "
            f"step_options.jit_compile={jit_compile}"
        )
    if steps_per_execution != 1:
        raise InputError(
            "sharded_strategy takes one step per call; remove the binding. Received: "
            f"step_options.steps_per_execution={steps_per_execution}"
        )
