"""Our side: tasks as functions of an order that return what takes a turn.

On TensorFlow, the program that users run; on Keras' other backends the model part of it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np

from igpt_tf import runtime
from igpt_tf.benchmark.shapes import VOCABULARY_SIZE
from igpt_tf.benchmark.worker import Order
from igpt_tf.model import ImageGPT


def device_peak_bytes() -> int | None:
    """The accelerator's peak memory, None without one."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None
    from igpt_tf.benchmark import ours_jax

    return ours_jax.device_peak_bytes()


def train(order: Order):
    """A training step, as the program takes it."""
    model, tokens = build(order, separate=True), tokens_of(order)
    if keras.backend.backend() == "jax":
        from igpt_tf.benchmark import ours_jax

        return ours_jax.train(model, tokens)
    import tensorflow as tf

    from igpt_tf.objectives import Autoregressive
    from igpt_tf.palette import Palette
    from igpt_tf.training.optimization import build_optimizer
    from igpt_tf.training.trainer import Trainer

    optimizer = build_optimizer(
        num_steps=10_000, steps_per_epoch=1, warmup_steps=0, learning_rate=1e-3
    )
    batch_size = order.shape.batch_size
    palette = Palette.grey(VOCABULARY_SIZE)
    trainer = Trainer(model, Autoregressive(), optimizer, palette, batch_size=batch_size)
    batch = {"tokens": tf.constant(tokens)}
    return lambda: float(trainer.train_step(batch))


def features(order: Order):
    """The features of all layers, one pass."""
    model, tokens = build(order), tokens_of(order)
    if keras.backend.backend() == "jax":
        from igpt_tf.benchmark import ours_jax

        return ours_jax.features(model, tokens)
    import tensorflow as tf

    compiled = tf.function(model.features)
    return lambda: compiled(tf.constant(tokens)).numpy()


def sample(order: Order):
    """Painting images; the rival "ours_jit" compiles the loop with XLA."""
    from igpt_tf.sampling.sampler import Sampler

    jit_compile = order.rival == "ours_jit"
    sampler = Sampler(build(order, separate=not jit_compile), jit_compile=jit_compile)
    return lambda: sampler.sample(order.shape.batch_size)


def palette(order: Order):
    """Images to tokens by the colour table, which the first turn makes."""
    from igpt_tf.benchmark.pictures import batches_of_photos, centroids
    from igpt_tf.palette import Palette

    colours, batches = Palette(centroids()), batches_of_photos(order.units)
    return lambda: [colours.encode(images) for images in batches]


def startup(order: Order):
    """From the command to the end of the digits run's first step."""

    def turn():
        folder = tempfile.mkdtemp()
        command = [sys.executable, "-m", "igpt_tf.main", "--gin_file=gin/runs/digits_tiny_ar.gin"]
        command += [f"--workdir={folder}", "--gin_param=intervals.log_every=1"]
        with open(os.devnull, "w", encoding="ascii") as nowhere:
            process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        try:
            _wait_for_line(os.path.join(folder, "metrics.jsonl"), process)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder)

    return turn


def matmul(order: Order):
    """The machine's peak: a product of two square matrices."""
    _set_up(order)
    if keras.backend.backend() == "jax":
        from igpt_tf.benchmark import ours_jax

        return ours_jax.matmul(order.units, order.precision)
    import tensorflow as tf

    x = tf.cast(tf.random.normal((order.units, order.units)), order.precision)
    product = tf.function(lambda: tf.reduce_max(tf.matmul(x, x)))
    return lambda: product().numpy()


def _set_up(order: Order, separate: bool = False) -> None:
    if order.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(order.threads)
        if separate:
            runtime.use_one_thread_per_op()


def build(order: Order, separate: bool = False) -> ImageGPT:
    """The network, and Keras and TensorFlow set to what was ordered, cores separate if so used."""
    _set_up(order, separate)
    shape = order.shape
    return ImageGPT(
        image_size=(shape.side, shape.side),
        vocabulary_size=VOCABULARY_SIZE,
        num_layers=shape.num_layers,
        hidden_dim=shape.hidden_dim,
        num_heads=shape.num_heads,
        remat=order.rival == "ours_recompute",
    )


def tokens_of(order: Order) -> np.ndarray:
    """Random tokens int32[B,T]."""
    size = (order.shape.batch_size, order.shape.length)
    return np.random.default_rng(0).integers(0, VOCABULARY_SIZE, size, "int32")


def _wait_for_line(path: str, process: subprocess.Popen) -> None:
    while not (os.path.exists(path) and os.path.getsize(path)):
        if process.poll() is not None:
            raise RuntimeError(f"the digits run ended early, exit code {process.returncode}")
        time.sleep(0.02)
