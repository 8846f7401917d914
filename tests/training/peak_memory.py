"""Measures the tensors that a training step holds at its height, in bytes.

python -m tests.training.peak_memory '{"image_size": [16, 16], ...}' BATCH_SIZE

What lies there between steps, weights and the optimizer's state, does not count. TensorFlow counts
on CPUs with TF_CPU_ALLOCATOR_USE_BFC=true only.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive
from igpt_tf.palette import Palette
from igpt_tf.training.trainer import Trainer


def step_peak(model: ImageGPT, palette: Palette, batch_size: int) -> int:
    """Bytes of tensors that a step of SGD allocates on top of those that were there."""
    trainer = Trainer(
        model,
        Autoregressive(),
        keras.optimizers.SGD(),
        palette,
        batch_size=batch_size,
        gradient_accumulation_steps=1,
        jit_compile=False,
    )
    batch = {"tokens": tf.zeros((batch_size, model.sequence_length), "int32")}
    trainer.train_step(batch)  # sets up
    tf.config.experimental.reset_memory_stats("CPU:0")
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    trainer.train_step(batch)
    return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before


def main() -> None:
    runtime.use_one_thread_per_op()  # as the program does
    model = ImageGPT(**json.loads(sys.argv[1]))
    colours = np.random.default_rng(0).uniform(-1, 1, (model.vocabulary_size, 3))
    palette = Palette(colours.astype("float32"))
    print(step_peak(model, palette, batch_size=int(sys.argv[2])))


if __name__ == "__main__":
    main()
