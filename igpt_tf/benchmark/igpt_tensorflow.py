"""This package on TensorFlow, run as its own programs run it.

Each function sets up a task and returns a function that runs it once.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

import keras
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.benchmark.worker import Job
from igpt_tf.benchmark.workloads import (
    VOCABULARY_SIZE,
    photo_batches,
    random_palette,
    random_tokens,
)
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive
from igpt_tf.palette import Palette
from igpt_tf.sampling.sampler import Sampler
from igpt_tf.training.optimization import build_optimizer
from igpt_tf.training.trainer import Trainer


def device_peak_bytes() -> int | None:
    """Peak memory of the accelerator, None without one."""
    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def train(job: Job):
    """A training step."""
    model = build(job, one_thread_per_op=True)
    optimizer = build_optimizer(
        num_steps=10_000, steps_per_epoch=1, warmup_steps=0, learning_rate=1e-3
    )
    palette = Palette.grey(VOCABULARY_SIZE)
    trainer = Trainer(model, Autoregressive(), optimizer, palette, batch_size=job.shape.batch_size)
    batch = {"tokens": tf.constant(random_tokens(job.shape))}
    return lambda: float(trainer.train_step(batch))


def features(job: Job):
    """The features of all layers in one pass."""
    model, tokens = build(job), tf.constant(random_tokens(job.shape))
    compiled = tf.function(model.features)
    return lambda: compiled(tokens).numpy()


def sample(job: Job):
    """Sampling of images; "igpt_tf_jit" compiles the loop with XLA."""
    jit_compile = job.implementation == "igpt_tf_jit"
    model = build(job, one_thread_per_op=not jit_compile)
    sampler = Sampler(model, jit_compile=jit_compile)
    return lambda: sampler.sample(job.shape.batch_size)


def palette(job: Job):
    """Images to tokens by the palette's table of colours, which the first run creates."""
    colours, batches = Palette(random_palette()), photo_batches(job.units)
    return lambda: [colours.encode(images) for images in batches]


def startup(job: Job):
    """From the command to the end of the first step of the digits run."""

    def run():
        workdir = tempfile.mkdtemp()
        command = [sys.executable, "-m", "igpt_tf.main", "--gin_file=gin/runs/digits_tiny_ar.gin"]
        command += [f"--workdir={workdir}", "--gin_param=intervals.log_every=1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for_line(os.path.join(workdir, "metrics.jsonl"), process)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(workdir)

    return run


def matmul(job: Job):
    """A product of two square matrices, which shows the machine's peak."""
    _configure(job)
    x = tf.cast(tf.random.normal((job.units, job.units)), job.precision)
    product = tf.function(lambda: tf.reduce_max(tf.matmul(x, x)))
    return lambda: product().numpy()


def build(job: Job, one_thread_per_op: bool = False) -> ImageGPT:
    """The network, after Keras and TensorFlow are configured for the job."""
    _configure(job)
    if one_thread_per_op:
        runtime.use_one_thread_per_op()
    return ImageGPT(**job.shape.architecture, remat=job.implementation == "igpt_tf_remat")


def _configure(job: Job) -> None:
    if job.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    tf.config.threading.set_intra_op_parallelism_threads(job.threads)


def _wait_for_line(path: str, process: subprocess.Popen) -> None:
    while not (os.path.exists(path) and os.path.getsize(path)):
        if process.poll() is not None:
            raise RuntimeError(f"the digits run ended early with exit code {process.returncode}")
        time.sleep(0.02)
