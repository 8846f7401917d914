"""This package's model on Keras' JAX backend, compiled; the step donates the weights.

Each function sets up a task and returns a function that runs it once.
"""

import jax
import jax.numpy as jnp
import keras

from igpt_tf.benchmark.worker import Job
from igpt_tf.benchmark.workloads import random_tokens
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive


def device_peak_bytes() -> int | None:
    """Peak memory of the accelerator, None without one."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def train(job: Job):
    """A training step: forward, backward, Adam."""
    model, tokens = _build(job), jnp.asarray(random_tokens(job.shape))
    objective, optimizer = Autoregressive(), keras.optimizers.Adam(1e-3, beta_2=0.95)
    optimizer.build(model.trainable_variables)

    def loss(weights):
        logits, _ = model.stateless_call(weights, [], tokens)
        return objective.nats(logits, tokens).mean()

    def step(weights, state):
        value, gradients = jax.value_and_grad(loss)(weights)
        return value, *optimizer.stateless_apply(state, gradients, weights)

    compiled = jax.jit(step, donate_argnums=(0, 1))
    # Copies: the buffers that are donated must not be the model's own.
    held = [
        [jnp.copy(variable.value) for variable in variables]
        for variables in (model.trainable_variables, optimizer.variables)
    ]

    def run():
        value, held[0], held[1] = compiled(*held)
        value.block_until_ready()

    return run


def features(job: Job):
    """The features of all layers in one pass."""
    model, tokens = _build(job), jnp.asarray(random_tokens(job.shape))
    weights = [variable.value for variable in model.variables]

    @jax.jit
    def compiled(weights):
        pairs = zip(model.variables, weights, strict=True)
        with keras.StatelessScope(state_mapping=list(pairs)):
            return model.features(tokens)

    return lambda: compiled(weights).block_until_ready()


def matmul(job: Job):
    """A product of two square matrices, which shows the machine's peak."""
    x = jax.random.normal(jax.random.key(0), (job.units, job.units), job.precision)
    product = jax.jit(lambda x: x @ x)
    return lambda: product(x).block_until_ready()


def _build(job: Job) -> ImageGPT:
    if job.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    return ImageGPT(**job.shape.architecture, remat=job.implementation == "igpt_tf_remat")
