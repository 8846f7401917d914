"""Claims about one step, and about the same step on several replicas."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive, Masked
from igpt_tf.palette import Palette
from igpt_tf.training.trainer import Trainer

PALETTE = Palette.grey(7)


def small_trainer(objective=None, **arguments):
    objective = objective or Autoregressive()
    keras.utils.set_random_seed(0)
    model = ImageGPT(
        image_size=(4, 4),
        vocabulary_size=7,
        num_layers=2,
        hidden_dim=8,
        num_heads=2,
        causal=objective.causal,
    )
    return Trainer(
        model, objective, keras.optimizers.Adam(0.01), PALETTE, batch_size=8, **arguments
    )


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


def test_images_quantised_in_the_step_train_like_tokens_from_the_host():
    trainer = small_trainer(jit_compile=True)
    on_device = [float(trainer.train_step({"images": tf.constant(images_of(s))})) for s in range(5)]
    np.testing.assert_allclose(on_device, losses(small_trainer(jit_compile=True)), rtol=1e-6)


@pytest.mark.parametrize("objective", [Autoregressive(), Masked(0.3)])
def test_training_on_one_batch_learns_it(objective):
    trainer = small_trainer(objective, jit_compile=False)
    draws = objective.draws(seed=0, step=0, batch_size=8, sequence_length=16)
    batch = {"tokens": tf.constant(PALETTE.encode(images_of(0))), **draws}
    first = float(trainer.train_step(batch))
    for _ in range(60):
        last = float(trainer.train_step(batch))
    assert first == pytest.approx(np.log(7), rel=1e-5) and last < 0.6 * first


@pytest.mark.parametrize("jit_compile", [False, True])
def test_four_parts_of_a_batch_train_like_the_whole(jit_compile):
    parts = small_trainer(accumulation=4, jit_compile=jit_compile)
    whole = small_trainer(jit_compile=jit_compile)
    np.testing.assert_allclose(losses(parts, 20), losses(whole, 20), rtol=1e-5)


def test_clipping_bounds_the_norm_of_the_gradient_and_leaves_small_ones_alone():
    loose, tight = small_trainer(clip_norm=1e3), small_trainer(clip_norm=1e-3)
    free = small_trainer()
    np.testing.assert_allclose(losses(loose), losses(free), rtol=1e-6)
    batch = {"tokens": tf.constant(PALETTE.encode(images_of(0)))}
    norms = []
    tight.optimizer.apply = lambda gradients, _: norms.append(tf.linalg.global_norm(gradients))
    tight._replica_step(batch)
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
count = int(sys.argv[1])
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count)
import keras
from igpt_tf import objectives, palette, data
from igpt_tf.model import ImageGPT
from igpt_tf.training import feeding, strategies, trainer
devices = tuple(f"CPU:{i}" for i in range(count))
strategy = strategies.mirrored_strategy(devices=devices)
kind = objectives.Autoregressive() if sys.argv[2] == "ar" else objectives.Masked()
colours = palette.Palette.grey(17)
examples = data.digits().train
keras.utils.set_random_seed(0)
with strategy.scope():
    model = ImageGPT(image_size=(8, 8), vocabulary_size=17, num_layers=2, hidden_dim=16,
                     num_heads=2, causal=kind.causal)
    one = trainer.Trainer(model, kind, keras.optimizers.Adam(0.01), colours, batch_size=16,
                          clip_norm=float(sys.argv[3]), jit_compile=True)
feed = feeding.Feed(kind, colours, strategy, batch_size=16, on_device=False)
batches = feed.training(examples, seed=0, first_step=0, augmentation=[data.shift()])
losses = [float(one.train_step(next(batches))) for _ in range(20)]
losses.append(one.evaluate(feed.evaluation(examples.take(range(40)))))
print(json.dumps(losses))
"""


@pytest.mark.parametrize("objective, clip_norm", [("ar", "0.1"), ("masked", "1e9")])
def test_two_replicas_train_like_one(objective, clip_norm):
    one, two = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", REPLICAS, str(count), objective, clip_norm],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for count in (1, 2)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert one[19] < one[0]
