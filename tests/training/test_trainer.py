"""Tests of one step, and of the same step on several replicas."""

import functools
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.objectives import Autoregressive, Masked
from igpt_tf.training import compilation
from igpt_tf.training.optimization import averaged_weights
from tests.training.small_runs import PALETTE, images_of, losses, small_trainer


def test_compiled_step_equals_the_uncompiled_one():
    compiled = losses(small_trainer(jit_compile=True))
    np.testing.assert_allclose(compiled, losses(small_trainer(jit_compile=False)), rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rematerialised_step_gives_equal_losses(jit_compile):
    again = small_trainer(sizes={"remat": True}, jit_compile=jit_compile)
    kept = small_trainer(jit_compile=jit_compile)
    np.testing.assert_allclose(losses(again), losses(kept), rtol=1e-6)


@pytest.mark.parametrize("objective", [Autoregressive(), Masked(0.5)])
def test_branches_of_a_batch_give_equal_losses_and_evaluations(objective, monkeypatch):
    def results():
        trainer, random_inputs = small_trainer(objective), {}
        if not objective.causal:
            random_inputs["masked"] = tf.constant(np.random.default_rng(0).random((8, 16)) < 0.5)
        step_losses = losses(trainer, **random_inputs)
        tokens = tf.constant(PALETTE.encode(images_of(9)))
        weight = tf.constant([1.0] * 5 + [0.0] * 3)
        return len(trainer.compilation.branches({"tokens": tokens})), [
            *step_losses,
            trainer.evaluate([{"tokens": tokens, "weight": weight, **random_inputs}]),
        ]

    one, expected = results()
    monkeypatch.setattr(runtime, "num_parallel_ops", lambda: 3)
    three, measured = results()
    assert (one, three) == (1, 3)  # 8 images: 2, 3 and 3
    np.testing.assert_allclose(measured, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "length", "branches", "parts"),
    [
        (16, 256, 2, 2),  # 4 images, 1,024 positions per core
        (2, 1024, 2, 1),
        (16, 1024, 2, 8),
        (18, 256, 2, 1),  # 9 images per core do not divide by 2
        (6, 1024, 4, 1),  # 6 images do not divide by 4 cores
        (64, 256, 1, 1),  # cores that share operations take the whole batch
    ],
)
def test_microbatches_have_about_a_thousand_positions_per_core(
    batch_size, length, branches, parts, monkeypatch
):
    monkeypatch.setattr(runtime, "num_parallel_ops", lambda: branches)
    arguments = {"sizes": {"image_size": (length // 16, 16)}, "batch_size": batch_size}
    assert small_trainer(**arguments).num_microbatches == parts
    assert small_trainer(**arguments, gradient_accumulation_steps=2).num_microbatches == 2
    assert small_trainer(**arguments, jit_compile=True).num_microbatches == 1


def step_graph(**arguments):
    trainer = small_trainer(jit_compile=False, **arguments)
    batch = {"tokens": tf.constant(PALETTE.encode(images_of(0)))}
    return trainer._gradients.get_concrete_function(batch).graph.as_graph_def()


def compiled_functions(**arguments):
    """How many functions within a step XLA compiles."""
    functions = step_graph(**arguments).library.function
    return sum(function.attr["_XlaMustCompile"].b for function in functions)


def test_fused_elementwise_chains_give_equal_losses(monkeypatch):
    compiled, number = losses(small_trainer(jit_compile=False)), compiled_functions()
    monkeypatch.setattr(compilation, "fusion_is_faster", lambda _: False)
    np.testing.assert_allclose(compiled, losses(small_trainer(jit_compile=False)), rtol=1e-6)
    assert number > 0 == compiled_functions()


def test_no_chain_is_fused_with_remat_or_without_xla(monkeypatch):
    assert compiled_functions(sizes={"remat": True}) == 0

    def without_xla(function):
        raise tf.errors.NotFoundError(None, None, "no registered platform")

    monkeypatch.setattr(compilation, "compile_elementwise", without_xla)
    assert compiled_functions() == 0


def step_nodes(num_layers):
    """How many operations a step's forward and backward pass hold, functions included."""
    graph = step_graph(sizes={"num_layers": num_layers})
    return len(graph.node) + sum(len(f.node_def) for f in graph.library.function)


def test_blocks_share_one_traced_function():
    two, four = step_nodes(2), step_nodes(4)
    assert four - two < 0.2 * two


def test_images_quantized_on_the_device_give_equal_losses():
    trainer = small_trainer(jit_compile=True)
    on_device = [float(trainer.train_step({"images": tf.constant(images_of(s))})) for s in range(5)]
    np.testing.assert_allclose(on_device, losses(small_trainer(jit_compile=True)), rtol=1e-6)


@pytest.mark.parametrize("objective", [Autoregressive(), Masked(0.3)])
def test_training_on_one_batch_learns_it(objective):
    trainer = small_trainer(objective, jit_compile=False)
    random_inputs = objective.random_inputs(seed=0, step=0, batch_size=8, sequence_length=16)
    batch = {"tokens": tf.constant(PALETTE.encode(images_of(0))), **random_inputs}
    first = float(trainer.train_step(batch))
    for _ in range(60):
        last = float(trainer.train_step(batch))
    assert first == pytest.approx(np.log(7), rel=1e-5) and last < 0.6 * first


@pytest.mark.parametrize("jit_compile", [False, True])
def test_four_microbatches_give_the_losses_of_the_whole_batch(jit_compile):
    parts = small_trainer(gradient_accumulation_steps=4, jit_compile=jit_compile)
    whole = small_trainer(jit_compile=jit_compile)
    np.testing.assert_allclose(losses(parts, 20), losses(whole, 20), rtol=1e-5)


def test_clipping_bounds_the_gradient_norm_and_keeps_small_gradients():
    loose, tight = small_trainer(clip_norm=1e3), small_trainer(clip_norm=1e-3)
    free = small_trainer()
    np.testing.assert_allclose(losses(loose), losses(free), rtol=1e-6)
    batch = {"tokens": tf.constant(PALETTE.encode(images_of(0)))}
    norms = []
    tight.optimizer.apply = lambda gradients, _: norms.append(tf.linalg.global_norm(gradients))
    tight._replica_step(batch, None)
    assert float(norms[0]) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 4}, {"clip_norm": 1e-3}, {"jit_compile": True}]
)
def test_gradient_norm_is_that_of_the_whole_batch_before_clipping(options):
    trainer = small_trainer(**options)
    losses(trainer, 2)
    tokens, weights = PALETTE.encode(images_of(0)), trainer.model.trainable_variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(trainer.objective(trainer.model, tf.constant(tokens)))
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    expected = np.sqrt(sum(np.sum(tf.convert_to_tensor(g).numpy() ** 2) for g in gradients))
    losses(trainer, 1)
    assert float(trainer.gradient_norm) == pytest.approx(expected, rel=1e-4)


def test_padding_of_the_last_batch_does_not_count_in_an_evaluation():
    trainer = small_trainer(jit_compile=False)
    losses(trainer)
    tokens = tf.constant(PALETTE.encode(images_of(9)))
    whole = trainer.evaluate([{"tokens": tokens, "weight": tf.ones(8)}])
    first = trainer.evaluate([{"tokens": tokens, "weight": tf.constant([1.0] * 3 + [0.0] * 5)}])
    rest = trainer.evaluate([{"tokens": tokens, "weight": tf.constant([0.0] * 3 + [1.0] * 5)}])
    assert whole == pytest.approx((3 * first + 5 * rest) / 8, rel=1e-6) and first != rest


REPLICAS = """
import json, sys
import tensorflow as tf
count, stack = int(sys.argv[1]), int(sys.argv[4])
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count)
import keras
from igpt_tf import data
from igpt_tf import objectives
from igpt_tf import palette
from igpt_tf.model import ImageGPT
from igpt_tf.data import input_pipeline
from igpt_tf.training import optimization, strategies, trainer
devices = tuple(f"CPU:{i}" for i in range(count))
strategy = strategies.mirrored_strategy(devices=devices)
kind = objectives.Autoregressive() if sys.argv[2] == "ar" else objectives.Masked()
colours = palette.Palette.grey(17)
examples = data.digits().train
keras.utils.set_random_seed(0)
with strategy.scope():
    model = ImageGPT(image_size=(8, 8), vocabulary_size=17, num_layers=2, hidden_dim=16,
                     num_heads=2, causal=kind.causal)
    adam = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
    one = trainer.Trainer(model, kind, adam, colours, batch_size=16,
                          clip_norm=float(sys.argv[3]), jit_compile=True, steps_per_execution=stack)
feed = input_pipeline.InputPipeline(
    kind, colours, strategy, batch_size=16, quantize_on_device=False)
batches = feed.train_batches(
    examples, seed=0, first_step=0, augmentation=[data.shift()], steps_per_execution=stack)
losses = [float(one.train_step(next(batches))) for _ in range(20 // stack)]
with optimization.averaged_weights(model, one.optimizer):
    losses.append(one.evaluate(feed.evaluation_batches(examples.take(range(40)))))
losses.append(one.evaluate(feed.evaluation_batches(examples.take(range(40)))))
print(json.dumps([*losses, float(one.gradient_norm)]))
"""


@pytest.fixture(scope="module")
def replicated_run():
    """The losses of 20 steps, of an evaluation with averaged and one with plain weights, and the
    gradient norm of the last step."""

    @functools.cache
    def run(*arguments):
        command = [sys.executable, "-c", REPLICAS, *map(str, arguments)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    return run


@pytest.mark.distributed
@pytest.mark.parametrize("objective, clip_norm", [("ar", "0.1"), ("masked", "1e9")])
def test_two_replicas_give_the_losses_of_one(replicated_run, objective, clip_norm):
    one = replicated_run(1, objective, clip_norm, 1)
    np.testing.assert_allclose(one, replicated_run(2, objective, clip_norm, 1), rtol=1e-5)
    assert one[19] < one[0]


@pytest.mark.distributed
def test_four_steps_per_execution_give_equal_losses_on_two_replicas(replicated_run):
    single = replicated_run(2, "ar", "0.1", 1)
    stacked = replicated_run(2, "ar", "0.1", 4)
    np.testing.assert_allclose(stacked[:5], np.mean(np.reshape(single[:20], (5, 4)), 1), rtol=1e-5)
    np.testing.assert_allclose(stacked[5:], single[20:], rtol=1e-5)


def test_averaged_weights_are_exponential_and_temporary():
    trainer = small_trainer()
    trainer.optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
    trainer.optimizer.build(trainer.model.trainable_variables)
    expected = None
    for step in range(4):
        losses(trainer, 1)
        own = trainer.model.get_weights()
        if step == 0:
            expected = own
        expected = [0.9 * a + 0.1 * w for a, w in zip(expected, own, strict=True)]
    with averaged_weights(trainer.model, trainer.optimizer):
        lent = trainer.model.get_weights()
    for average, reference, before, after in zip(
        lent, expected, own, trainer.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(average, reference, atol=1e-6)
        np.testing.assert_array_equal(before, after)
    assert any(np.abs(a - w).max() > 1e-4 for a, w in zip(lent, own, strict=True))
