"""Our model on Keras' JAX backend: the same layers, compiled, the weights donated to the step."""

import jax
import jax.numpy as jnp
import keras

from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive


def device_peak_bytes() -> int | None:
    """The accelerator's peak memory, None without one."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def train(model: ImageGPT, tokens):
    """A compiled training step: forward, backward, Adam."""
    objective, optimizer = Autoregressive(), keras.optimizers.Adam(1e-3, beta_2=0.95)
    optimizer.build(model.trainable_variables)
    tokens = jnp.asarray(tokens)

    def loss(weights):
        logits, _ = model.stateless_call(weights, [], tokens)
        return objective.nats(logits, tokens).mean()

    def step(weights, state):
        value, gradients = jax.value_and_grad(loss)(weights)
        return value, *optimizer.stateless_apply(state, gradients, weights)

    compiled = jax.jit(step, donate_argnums=(0, 1))
    # Copies: the donated buffers must not be the model's own.
    held = [
        [jnp.copy(variable.value) for variable in variables]
        for variables in (model.trainable_variables, optimizer.variables)
    ]

    def turn():
        value, held[0], held[1] = compiled(*held)
        value.block_until_ready()

    return turn


def features(model: ImageGPT, tokens):
    """The features of all layers, compiled."""
    weights = [variable.value for variable in model.variables]

    @jax.jit
    def compiled(weights):
        pairs = zip(model.variables, weights, strict=True)
        with keras.StatelessScope(state_mapping=list(pairs)):
            return model.features(jnp.asarray(tokens))

    return lambda: compiled(weights).block_until_ready()


def matmul(size: int, precision: str):
    """A product of two square matrices."""
    x = jax.random.normal(jax.random.key(0), (size, size), precision)
    product = jax.jit(lambda x: x @ x)
    return lambda: product(x).block_until_ready()
