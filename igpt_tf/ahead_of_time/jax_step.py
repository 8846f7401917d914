"""The training step on several devices: the Keras layers on JAX, replicated or sharded.

Sharded, each device holds a part of every weight and moment, and the weights of a block are
gathered in the compute dtype when it runs, as in `training/sharding.py`. XLA inserts the
collectives. The blocks run in a loop over stacked weights, as in `tensorflow_step`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from igpt_tf.ahead_of_time import adam, compilers
from igpt_tf.ahead_of_time.targets import Target
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Objective


def compile_step(
    target: Target,
    model: ImageGPT,
    objective: Objective,
    batch_size: int,
    chips: int = 1,
    sharded: bool = False,
) -> compilers.Compiled:
    """Compiles a training step for devices that are not there.

    Args:
        target: The devices.
        model: An `abstract_model`.
        objective: The objective.
        batch_size: Images per step, of all devices.
        chips: Number of devices.
        sharded: Whether weights and optimizer state are divided over the devices.

    Raises:
        DoesNotFit: The compiler refuses the program.
    """
    devices = compilers.devices(target, chips)
    step, arguments = training_step(devices, model, objective, batch_size, sharded)
    return compilers.compile_lowered(target, step.lower(*arguments))


def training_step(
    devices: Sequence[jax.Device],
    model: ImageGPT,
    objective: Objective,
    batch_size: int,
    sharded: bool = False,
) -> tuple[Callable, tuple]:
    """The training step and the shapes of its arguments; see `compile_step`.

    Returns:
        (step, arguments). step(batch, rate, weights, means, squares), under `jax.jit`, returns
        (loss, weights, means, squares) and overwrites the last three arguments. Weights are the
        two lists of `divide_weights` in one; those of the blocks are stacked, float32[L,...].
    """
    mesh = Mesh(np.array(devices), ("devices",))
    whole = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec("devices"))

    length = model.sequence_length
    batch = {"tokens": jax.ShapeDtypeStruct((batch_size, length), jnp.int32)}
    drawn = jax.eval_shape(
        lambda: objective.random_inputs(
            seed=0, step=0, batch_size=batch_size, sequence_length=length
        )
    )
    batch |= drawn
    others, stacks = divide_weights(model)
    shapes = [(*one.shape,) for one in others]
    shapes += [(model.num_layers, *one.shape) for one in stacks]
    shardings = [
        _sharding(mesh, shape, first=int(index >= len(others))) if sharded else whole
        for index, shape in enumerate(shapes)
    ]
    state = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss_of(weights, batch):
        model.block_runner = _loop(model, weights[len(others) :], whole if sharded else None)
        gathered = weights[: len(others)]
        if sharded:
            gathered = [jax.lax.with_sharding_constraint(one, whole) for one in gathered]
        try:
            values = list(zip(others, gathered, strict=True))
            with keras.StatelessScope(values, initialize_variables=False):
                rest = {name: x for name, x in batch.items() if name != "tokens"}
                return jnp.mean(objective(model, batch["tokens"], **rest))
        finally:
            model.block_runner = None

    def step(batch, rate, weights, means, squares):
        loss, gradients = jax.value_and_grad(loss_of)(weights, batch)
        updated = [
            adam.update(rate, *one) for one in zip(weights, means, squares, gradients, strict=True)
        ]
        return loss, *map(list, zip(*updated, strict=True))

    jitted = jax.jit(
        step,
        in_shardings=(divided, whole, shardings, shardings, shardings),
        out_shardings=(whole, shardings, shardings, shardings),
        donate_argnums=(2, 3, 4),
    )
    return jitted, (batch, jax.ShapeDtypeStruct((), jnp.float32), state, state, state)


def divide_weights(model: ImageGPT) -> tuple[list, list]:
    """(weights outside of the blocks, weights of the first block)."""
    in_blocks = {id(weight) for block in model.blocks for weight in block.weights}
    others = [weight for weight in model.trainable_variables if id(weight) not in in_blocks]
    return others, model.blocks[0].weights


def _sharding(mesh, shape, first):
    """Divides the first axis from `first` on whose size the devices divide; else whole."""
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % mesh.size == 0]
    parts = [None] * len(shape)
    if axes:
        parts[axes[0]] = "devices"
    return NamedSharding(mesh, PartitionSpec(*parts))


def _loop(model, stacks, gathered):
    """A `block_runner` that runs all blocks when the first is asked for, and none for the others.

    Args:
        model: The model.
        stacks: Weights of all blocks, float32[L,...].
        gathered: Sharding of the weights of the block that runs; None where they are whole.
    """
    first = model.blocks[0]

    def run(h, weights):
        if gathered is not None:
            weights = [
                jax.lax.with_sharding_constraint(one.astype(model.compute_dtype), gathered)
                for one in weights
            ]
        values = list(zip(first.weights, weights, strict=True))
        with keras.StatelessScope(values, initialize_variables=False):
            return first(h), None

    # Without `prevent_cse`: the loop already keeps the two passes apart.
    body = jax.checkpoint(run, prevent_cse=False) if model.remat else run
    return lambda block, h: jax.lax.scan(body, h, stacks)[0] if block is first else h
