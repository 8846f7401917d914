"""Hugging Face's ImageGPT: what its users would write."""

import torch
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTImageProcessor

from igpt_tf.benchmark.pictures import batches_of_photos, centroids
from igpt_tf.benchmark.plain_gpt import device_peak_bytes, means, step, tokens_of
from igpt_tf.benchmark.shapes import VOCABULARY_SIZE
from igpt_tf.benchmark.worker import Order

__all__ = ["device_peak_bytes", "features", "palette", "sample", "train"]

_SOS = VOCABULARY_SIZE


def train(order: Order):
    """A training step."""
    model, tokens = _model(order).train(), tokens_of(order)
    inputs = torch.cat([torch.full_like(tokens[:, :1], _SOS), tokens[:, :-1]], dim=1)
    return step(model, lambda: model(input_ids=inputs, labels=tokens).loss)


def features(order: Order):
    """Means over positions of all hidden states."""
    model, tokens = _model(order).eval().transformer, tokens_of(order)
    return lambda: means(lambda: model(tokens, output_hidden_states=True).hidden_states)


def sample(order: Order):
    """`generate` with its cache."""
    model = _model(order).eval()
    start = torch.full((order.shape.batch_size, 1), _SOS)
    length = order.shape.length
    return lambda: model.generate(
        start, min_new_tokens=length, max_new_tokens=length, do_sample=True, top_k=0
    )


def palette(order: Order):
    """The image processor's colour quantisation alone."""
    processor = ImageGPTImageProcessor(clusters=centroids().tolist(), do_resize=False)
    batches = [list(images) for images in batches_of_photos(order.units)]
    return lambda: [processor(images) for images in batches]


def _model(order: Order):
    torch.set_num_threads(order.threads)
    shape = order.shape
    config = ImageGPTConfig(
        vocab_size=VOCABULARY_SIZE + 1,
        n_positions=shape.length + 1,  # `generate` needs room for the token that it does not use
        n_embd=shape.hidden_dim,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return ImageGPTForCausalImageModeling(config)
