"""Hugging Face's ImageGPT in torch, as its users would call it.

Each function sets up a task and returns a function that runs it once.
"""

import torch
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTImageProcessor

from igpt_tf.benchmark.torch_gpt import device_peak_bytes, means, tokens_of, training_step
from igpt_tf.benchmark.worker import Job
from igpt_tf.benchmark.workloads import VOCABULARY_SIZE, photo_batches, random_palette

__all__ = ["device_peak_bytes", "features", "palette", "sample", "train"]

_SOS = VOCABULARY_SIZE


def train(job: Job):
    """A training step."""
    model, tokens = _model(job).train(), tokens_of(job)
    inputs = torch.cat([torch.full_like(tokens[:, :1], _SOS), tokens[:, :-1]], dim=1)
    return training_step(model, lambda: model(input_ids=inputs, labels=tokens).loss)


def features(job: Job):
    """The means over positions of all hidden states."""
    model, tokens = _model(job).eval().transformer, tokens_of(job)
    return lambda: means(lambda: model(tokens, output_hidden_states=True).hidden_states)


def sample(job: Job):
    """Sampling by `generate` with its cache."""
    model = _model(job).eval()
    start = torch.full((job.shape.batch_size, 1), _SOS)
    length = job.shape.sequence_length
    return lambda: model.generate(
        start, min_new_tokens=length, max_new_tokens=length, do_sample=True, top_k=0
    )


def palette(job: Job):
    """Images to tokens by the colour quantisation of the image processor."""
    processor = ImageGPTImageProcessor(clusters=random_palette().tolist(), do_resize=False)
    batches = [list(images) for images in photo_batches(job.units)]
    return lambda: [processor(images) for images in batches]


def _model(job: Job):
    torch.set_num_threads(job.threads)
    shape = job.shape
    config = ImageGPTConfig(
        vocab_size=VOCABULARY_SIZE + 1,
        n_positions=shape.sequence_length + 1,  # `generate` needs a position for sos too
        n_embd=shape.hidden_dim,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return ImageGPTForCausalImageModeling(config)
