"""Tests of the training step that is compiled: it computes what a run computes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.ahead_of_time import tensorflow_step
from igpt_tf.model import ImageGPT, abstract_model
from igpt_tf.objectives import Autoregressive, Masked

SIZES = {
    "image_size": (16, 16),
    "vocabulary_size": 16,
    "num_layers": 2,
    "hidden_dim": 32,
    "num_heads": 2,
}


def loss_and_gradients(model, batch, objective, scan):
    """Loss and {name of the weight in the first block, or of another one: gradient}."""
    others, stacks = tensorflow_step._weights(model, scan)
    names = [one.path.split("/", 1)[1] for one in (*others, *stacks)]
    depth = range(len(model.blocks))
    weights = [one.value for one in others]
    weights += [
        tf.stack([block.weights[i].value for block in model.blocks]) for i in range(len(stacks))
    ]

    @tf.function(autograph=False, jit_compile=True)
    def compute(batch, weights):
        return tensorflow_step._loss_and_gradients(
            model, objective, batch, others, stacks, list(weights)
        )

    loss, gradients = compute(batch, [tf.convert_to_tensor(one) for one in weights])
    found = dict(zip(names, map(np.asarray, gradients), strict=True))
    if scan:
        for name in [name for name in found if name.startswith("block_0")]:
            stack = found.pop(name)
            found |= {name.replace("block_0", f"block_{i}"): stack[i] for i in depth}
    return float(loss), found


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("objective", [Autoregressive(), Masked(probability=0.15)])
def test_blocks_in_a_loop_have_the_loss_and_gradients_of_the_model(objective, remat):
    keras.utils.set_random_seed(0)
    model = ImageGPT(**SIZES, causal=objective.causal, remat=remat)
    model.output_embedding.assign(keras.random.normal((16, 32), seed=1))
    batch = {"tokens": tf.random.uniform((2, 256), 0, 16, tf.int32, seed=2)}
    batch |= objective.random_inputs(seed=3, step=0, batch_size=2, sequence_length=256)
    inputs = {name: x for name, x in batch.items() if name != "tokens"}
    with tf.GradientTape() as tape:
        expected = tf.reduce_mean(objective(model, batch["tokens"], **inputs))
    gradients = tape.gradient(expected, [one.value for one in model.trainable_variables])
    for scan in (False, True):
        loss, found = loss_and_gradients(model, batch, objective, scan)
        assert loss == pytest.approx(float(expected), rel=1e-5)
        assert len(found) == len(gradients)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            name = variable.path.split("/", 1)[1]
            np.testing.assert_allclose(
                found[name], tf.convert_to_tensor(gradient), atol=2e-5, err_msg=name
            )


def test_microbatches_in_a_loop_have_the_loss_and_gradients_of_the_batch():
    keras.utils.set_random_seed(0)
    model = ImageGPT(**SIZES)
    model.output_embedding.assign(keras.random.normal((16, 32), seed=1))
    others, stacks = tensorflow_step._weights(model, scan=True)
    weights = [one.value for one in others]
    weights += [tf.stack([b.weights[i].value for b in model.blocks]) for i in range(len(stacks))]
    batch = {"tokens": tf.random.uniform((4, 256), 0, 16, tf.int32, seed=2)}

    @tf.function(autograph=False, jit_compile=True)
    def compute(microbatches):
        return tensorflow_step._accumulate(
            lambda part: tensorflow_step._loss_and_gradients(
                model, Autoregressive(), part, others, stacks, weights
            ),
            batch,
            weights,
            microbatches,
        )

    whole, parts = compute(1), compute(2)
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=1e-6)
    for one, other in zip(whole[1], parts[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_the_graph_does_not_grow_with_the_depth():
    def num_bytes(depth):
        model = abstract_model(lambda: ImageGPT(**{**SIZES, "num_layers": depth}))
        return len(tensorflow_step.training_program(model, Autoregressive(), 2).hlo)

    assert num_bytes(24) < 1.02 * num_bytes(2)


def test_state_is_donated_and_a_run_keeps_its_own_block_runner():
    model = abstract_model(lambda: ImageGPT(**SIZES))
    program = tensorflow_step.training_program(model, Autoregressive(), 2)
    # Arguments: tokens, learning rate, state. Results: loss, state. 11 tensors, thrice.
    assert program.donated == tuple((2 + i, 1 + i) for i in range(3 * 11))
    assert model.block_runner is None
