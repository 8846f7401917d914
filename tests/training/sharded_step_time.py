"""Prints the processor seconds of a sharded training step; each device is a part of the CPU.

python -m tests.training.sharded_step_time NUM_DEVICES '{"remat": true}'
"""

import json
import sys
import time

import numpy as np
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive
from igpt_tf.palette import Palette
from igpt_tf.training.optimization import constant_adam
from igpt_tf.training.sharding import ShardedTrainer
from igpt_tf.training.strategies import sharded_strategy

BATCH_SIZE = 8
MODEL = {"image_size": (16, 16), "vocabulary_size": 16, "num_layers": 2, "num_heads": 4}


def main() -> None:
    num_devices, options = int(sys.argv[1]), json.loads(sys.argv[2])
    runtime.use_one_thread_per_op()
    strategy = sharded_strategy(logical_cpus=num_devices)
    trainer = ShardedTrainer(
        lambda: ImageGPT(**MODEL, hidden_dim=256, **options),
        Autoregressive(),
        constant_adam(learning_rate=0.001),
        Palette.grey(16),
        strategy,
        batch_size=BATCH_SIZE,
    )
    rows = BATCH_SIZE // num_devices
    parts = [tf.zeros((rows, trainer.model.sequence_length), "int32")] * num_devices
    seconds = []
    for _ in range(4):
        start = time.process_time()
        float(trainer.train_step({"tokens": strategy.pack(parts, axis=0)}))
        seconds.append(time.process_time() - start)
    print(np.median(seconds[1:]))


if __name__ == "__main__":
    main()
