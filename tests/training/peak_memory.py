"""Measures how a training step's peak memory grows with the batch, in bytes an image.

python -m tests.training.peak_memory '{"image_size": [16, 16], ...}' BATCH_SIZE LARGER_BATCH_SIZE
"""

import json
import pathlib
import re
import sys

import keras
import numpy as np
import tensorflow as tf

from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive
from igpt_tf.palette import Palette
from igpt_tf.training.trainer import Trainer


def step_peak(model: ImageGPT, palette: Palette, batch_size: int) -> int:
    """Bytes of memory that this process has at the height of a step."""
    trainer = Trainer(
        model,
        Autoregressive(),
        keras.optimizers.SGD(),
        palette,
        batch_size=batch_size,
        jit_compile=False,
    )
    batch = {"tokens": tf.zeros((batch_size, model.sequence_length), "int32")}
    trainer.train_step.get_concrete_function(batch)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    trainer.train_step(batch)
    return _status("VmHWM")


def _status(name: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1])


def main() -> None:
    sizes = json.loads(sys.argv[1])
    batch_sizes = [int(argument) for argument in sys.argv[2:]]
    model = ImageGPT(**sizes)
    colours = np.random.default_rng(0).uniform(-1, 1, (model.vocabulary_size, 3))
    palette = Palette(colours.astype("float32"))
    step_peak(model, palette, 1)  # the runtime's own buffers
    low, high = (step_peak(model, palette, batch_size) for batch_size in batch_sizes)
    print(json.dumps((high - low) / (batch_sizes[1] - batch_sizes[0])))


if __name__ == "__main__":
    main()
