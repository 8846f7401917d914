"""Claims about one step, and about the same step on several replicas."""

import functools
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive, Masked
from igpt_tf.palette import Palette
from igpt_tf.training import elementwise
from igpt_tf.training.optimization import averaged_weights
from igpt_tf.training.trainer import Trainer

PALETTE = Palette.grey(7)


def small_trainer(objective=None, sizes=None, **arguments):
    objective = objective or Autoregressive()
    keras.utils.set_random_seed(0)
    shape = {"image_size": (4, 4), "num_layers": 2, "hidden_dim": 8, "num_heads": 2}
    shape |= {"vocabulary_size": 7, "causal": objective.causal}
    model = ImageGPT(**shape | (sizes or {}))
    adam = keras.optimizers.Adam(0.01)
    return Trainer(model, objective, adam, PALETTE, **{"batch_size": 8, **arguments})


def images_of(step, number=8):
    levels = np.random.default_rng(step).integers(0, 256, (number, 4, 4, 1), dtype="uint8")
    return np.repeat(levels, 3, axis=-1)


def losses(trainer, steps=5, **extra):
    return [
        float(trainer.train_step({"tokens": tf.constant(PALETTE.encode(images_of(s))), **extra}))
        for s in range(steps)
    ]


def test_the_compiled_step_equals_the_plain_one():
    compiled = losses(small_trainer(jit_compile=True))
    np.testing.assert_allclose(compiled, losses(small_trainer(jit_compile=False)), rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_that_recomputes_its_blocks_trains_alike(jit_compile):
    again = small_trainer(sizes={"remat": True}, jit_compile=jit_compile)
    kept = small_trainer(jit_compile=jit_compile)
    np.testing.assert_allclose(losses(again), losses(kept), rtol=1e-6)


@pytest.mark.parametrize("objective", [Autoregressive(), Masked(0.5)])
def test_cores_that_take_parts_of_a_batch_train_and_judge_alike(objective, monkeypatch):
    def judged():
        trainer, random_inputs = small_trainer(objective), {}
        if not objective.causal:
            random_inputs["masked"] = tf.constant(np.random.default_rng(0).random((8, 16)) < 0.5)
        taken = losses(trainer, **random_inputs)
        tokens = tf.constant(PALETTE.encode(images_of(9)))
        weight = tf.constant([1.0] * 5 + [0.0] * 3)
        return len(trainer.branches({"tokens": tokens})), [
            *taken,
            trainer.evaluate([{"tokens": tokens, "weight": weight, **random_inputs}]),
        ]

    one, alone = judged()
    monkeypatch.setattr(runtime, "num_parallel_ops", lambda: 3)
    three, apart = judged()
    assert (one, three) == (1, 3)  # 8 images: 2, 3 and 3
    np.testing.assert_allclose(apart, alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "length", "branches", "parts"),
    [
        (16, 256, 2, 2),  # 4 images, 1,024 positions a core
        (2, 1024, 2, 1),
        (16, 1024, 2, 8),
        (18, 256, 2, 1),  # 9 images a core are no 2 parts
        (6, 1024, 4, 1),  # nor have 4 cores as many of 6
        (64, 256, 1, 1),  # cores that share operations want the whole
    ],
)
def test_a_core_has_about_a_thousand_positions_at_a_time(
    batch_size, length, branches, parts, monkeypatch
):
    monkeypatch.setattr(runtime, "num_parallel_ops", lambda: branches)
    sizes = {"image_size": (length // 16, 16)}
    assert small_trainer(sizes=sizes, batch_size=batch_size).gradient_accumulation_steps == parts
    assert (
        small_trainer(
            sizes=sizes, batch_size=batch_size, gradient_accumulation_steps=2
        ).gradient_accumulation_steps
        == 2
    )
    assert (
        small_trainer(
            sizes=sizes, batch_size=batch_size, jit_compile=True
        ).gradient_accumulation_steps
        == 1
    )


def step_graph(**arguments):
    trainer = small_trainer(jit_compile=False, **arguments)
    batch = {"tokens": tf.constant(PALETTE.encode(images_of(0)))}
    return trainer._gradients.get_concrete_function(batch).graph.as_graph_def()


def compiled_functions(**arguments):
    """How many functions within a step XLA compiles."""
    functions = step_graph(**arguments).library.function
    return sum(function.attr["_XlaMustCompile"].b for function in functions)


def test_elementwise_chains_compiled_by_xla_train_alike(monkeypatch):
    compiled, number = losses(small_trainer(jit_compile=False)), compiled_functions()
    monkeypatch.setattr(elementwise, "worthwhile", lambda _: False)
    np.testing.assert_allclose(compiled, losses(small_trainer(jit_compile=False)), rtol=1e-6)
    assert number > 0 == compiled_functions()


def test_no_chain_is_compiled_where_memory_is_short_or_xla_is_not_there(monkeypatch):
    assert compiled_functions(sizes={"remat": True}) == 0

    def unknown(function):
        raise tf.errors.NotFoundError(None, None, "no registered platform")

    monkeypatch.setattr(elementwise, "_compiled", unknown)
    assert compiled_functions() == 0


def step_nodes(num_layers):
    """How many operations a step's forward and backward pass hold, functions included."""
    graph = step_graph(sizes={"num_layers": num_layers})
    return len(graph.node) + sum(len(f.node_def) for f in graph.library.function)


def test_a_block_is_traced_once_however_many_there_are():
    two, four = step_nodes(2), step_nodes(4)
    assert four - two < 0.2 * two


def test_images_quantised_in_the_step_train_like_tokens_from_the_host():
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
def test_four_parts_of_a_batch_train_like_the_whole(jit_compile):
    parts = small_trainer(gradient_accumulation_steps=4, jit_compile=jit_compile)
    whole = small_trainer(jit_compile=jit_compile)
    np.testing.assert_allclose(losses(parts, 20), losses(whole, 20), rtol=1e-5)


def test_clipping_bounds_the_norm_of_the_gradient_and_leaves_small_ones_alone():
    loose, tight = small_trainer(clip_norm=1e3), small_trainer(clip_norm=1e-3)
    free = small_trainer()
    np.testing.assert_allclose(losses(loose), losses(free), rtol=1e-6)
    batch = {"tokens": tf.constant(PALETTE.encode(images_of(0)))}
    norms = []
    tight.optimizer.apply = lambda gradients, _: norms.append(tf.linalg.global_norm(gradients))
    tight._replica_step(batch, None)
    assert float(norms[0]) == pytest.approx(1e-3, rel=1e-4)


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
    examples, seed=0, first_step=0, augmentation=[data.shift()], stack=stack)
losses = [float(one.train_step(next(batches))) for _ in range(20 // stack)]
with optimization.averaged_weights(model, one.optimizer):
    losses.append(one.evaluate(feed.evaluation_batches(examples.take(range(40)))))
losses.append(one.evaluate(feed.evaluation_batches(examples.take(range(40)))))
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def replicated_run():
    """The losses of 20 steps, then of an evaluation with averaged and one with plain weights."""

    @functools.cache
    def run(*arguments):
        command = [sys.executable, "-c", REPLICAS, *map(str, arguments)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    return run


@pytest.mark.parametrize("objective, clip_norm", [("ar", "0.1"), ("masked", "1e9")])
def test_two_replicas_train_like_one(replicated_run, objective, clip_norm):
    one = replicated_run(1, objective, clip_norm, 1)
    np.testing.assert_allclose(one, replicated_run(2, objective, clip_norm, 1), rtol=1e-5)
    assert one[19] < one[0]


def test_four_steps_in_one_call_train_like_four_calls_on_two_replicas_too(replicated_run):
    single = replicated_run(2, "ar", "0.1", 1)
    stacked = replicated_run(2, "ar", "0.1", 4)
    np.testing.assert_allclose(stacked[:5], np.mean(np.reshape(single[:20], (5, 4)), 1), rtol=1e-5)
    np.testing.assert_allclose(stacked[5:], single[20:], rtol=1e-5)


def test_the_average_of_the_weights_is_exponential_and_lent_only():
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
