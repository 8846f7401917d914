"""The plain GPT's side of the benchmark; the network itself is `torch_gpt`."""

import torch
from torch.nn import functional

from igpt_tf.benchmark.shapes import VOCABULARY_SIZE
from igpt_tf.benchmark.torch_gpt import GPT
from igpt_tf.benchmark.worker import Order


def device_peak_bytes() -> int | None:
    """The accelerator's peak memory, None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def train(order: Order):
    """A training step with torch's fused Adam."""
    model, tokens = build(order), tokens_of(order)

    def loss():
        return functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())

    return step(model, loss)


def features(order: Order):
    """Means over positions of all hidden states."""
    model, tokens = build(order).eval(), tokens_of(order)
    return lambda: means(lambda: model.hidden_states(tokens))


def matmul(order: Order):
    """The machine's peak: a product of two square matrices."""
    torch.set_num_threads(order.threads)
    x = torch.randn(order.units, order.units, dtype=getattr(torch, order.precision))
    return lambda: float((x @ x).max())


def build(order: Order) -> GPT:
    """The model, on the accelerator where there is one."""
    torch.set_num_threads(order.threads)
    shape = order.shape
    return GPT(
        num_layers=shape.num_layers,
        dim=shape.hidden_dim,
        num_heads=shape.num_heads,
        vocabulary_size=VOCABULARY_SIZE,
        length=shape.length,
    )


def tokens_of(order: Order):
    """int64[B,T]."""
    return torch.randint(VOCABULARY_SIZE, (order.shape.batch_size, order.shape.length))


def step(model, loss):
    """A training step that minimises `loss()`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)

    def turn():
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()

    return turn


def means(states):
    """float32[B,L+1,D] of `states()`, each float[B,T,D], as NumPy."""
    with torch.inference_mode():
        return torch.stack([h.mean(dim=1) for h in states()], dim=1).numpy()
