"""Test of the step for several devices: its loop has the loss and gradients of the model."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("jax")

PROGRAM = """
import json
import jax, jax.numpy as jnp, keras
from igpt_tf.ahead_of_time import jax_step
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive

found = []
for remat in (False, True):
    model = ImageGPT(
        image_size=(8, 8), vocabulary_size=16, num_layers=3, hidden_dim=32, num_heads=2, remat=remat
    )
    tokens = jax.random.randint(jax.random.key(0), (2, 64), 0, 16)
    first = model.blocks[0].weights
    stacks = [
        jnp.stack([block.weights[i].value for block in model.blocks]) for i in range(len(first))
    ]
    h = model.embed(tokens)

    def direct(stacks):
        x = h
        for i, block in enumerate(model.blocks):
            values = [(w, stack[i]) for w, stack in zip(block.weights, stacks)]
            with keras.StatelessScope(values):
                x = block(x)
        return jnp.sum(x**2)

    def loop(stacks):
        return jnp.sum(jax_step._loop(model, stacks, None)(model.blocks[0], h) ** 2)

    (a, g), (b, k) = (jax.value_and_grad(f)(stacks) for f in (direct, loop))
    errors = [float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(x))) for x, y in zip(g, k)]
    found.append([abs(float(a - b)) / float(a), max(errors)])
print(json.dumps(found))
"""


@pytest.mark.compile
def test_blocks_in_a_loop_have_the_loss_and_gradients_of_the_model():
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    for loss, gradients in json.loads(ended.stdout):
        assert loss < 1e-5 and gradients < 1e-4
