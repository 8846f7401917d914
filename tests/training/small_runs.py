"""A small trainer and short runs of it, shared by the tests of training."""

import keras
import numpy as np
import tensorflow as tf

from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive
from igpt_tf.palette import Palette
from igpt_tf.training.loop import TrainingLoop
from igpt_tf.training.trainer import Trainer
from igpt_tf.training.workdir import Workdir

PALETTE = Palette.grey(7)
POISONED_STEP = 13  # counted from 0, of seed 0 only
NUM_STEPS = 20


def small_trainer(objective=None, sizes=None, trainer_class=Trainer, **arguments):
    objective = objective or Autoregressive()
    keras.utils.set_random_seed(0)
    shape = {"image_size": (4, 4), "num_layers": 2, "hidden_dim": 8, "num_heads": 2}
    shape |= {"vocabulary_size": 7, "causal": objective.causal}
    model = ImageGPT(**shape | (sizes or {}))
    adam = keras.optimizers.Adam(0.01)
    return trainer_class(model, objective, adam, PALETTE, **{"batch_size": 8, **arguments})


def images_of(step, number=8):
    levels = np.random.default_rng(step).integers(0, 256, (number, 4, 4, 1), dtype="uint8")
    return np.repeat(levels, 3, axis=-1)


def losses(trainer, steps=5, **extra):
    return [
        float(trainer.train_step({"tokens": tf.constant(PALETTE.encode(images_of(s))), **extra}))
        for s in range(steps)
    ]


class FragileTrainer(Trainer):
    """A trainer whose weights become NaN at a poisoned batch, as by an overflow."""

    def train_step(self, batch):
        loss = super().train_step({"tokens": batch["tokens"]})
        if batch.get("poisoned"):
            self.model.set_weights([w * np.nan for w in self.model.get_weights()])
        return loss


def run_loop(workdir, callbacks=(), *, on_batch=lambda step, seed: None, **options):
    """Runs a loop; returns it and the (step, seed) of every batch that it took."""
    sizes = {"image_size": (3, 3), "vocabulary_size": 5, "num_layers": 1}
    trainer = small_trainer(sizes=sizes, trainer_class=FragileTrainer, batch_size=4)
    taken = []

    def batches(first_step, seed):
        for step in range(first_step, NUM_STEPS):
            taken.append((step, seed))
            on_batch(step, seed)
            tokens = np.random.default_rng([seed, step]).integers(0, 5, (4, 9))
            is_poisoned = seed == 0 and step == POISONED_STEP and options.get("poison", True)
            yield {"tokens": tf.constant(tokens, "int32"), "poisoned": is_poisoned}

    options = {"num_steps": NUM_STEPS, "seed": 0, **options}
    options.pop("poison", None)
    loop = TrainingLoop(Workdir(str(workdir)), trainer, batches, list(callbacks), **options)
    loop.run()
    return loop, taken
