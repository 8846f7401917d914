"""A plain GPT in torch with fused attention and optimizer, of the same sizes as `ImageGPT`.

Each function sets up a task and returns a function that runs it once.
"""

import torch
from torch import nn
from torch.nn import functional

from igpt_tf.benchmark.worker import Job
from igpt_tf.benchmark.workloads import VOCABULARY_SIZE, Shape, random_tokens


class Block(nn.Module):
    """Pre-norm attention and MLP without biases, by torch's fused norm, attention and GELU."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.LayerNorm(dim, bias=False)
        self.expand = nn.Linear(dim, 4 * dim, bias=False)
        self.shrink = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, h):
        """float[B,T,D] -> float[B,T,D]."""
        batch_size, length, dim = h.shape
        qkv = self.qkv(self.attention_norm(h)).view(batch_size, length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        h = h + self.output(heads.transpose(1, 2).reshape(batch_size, length, dim))
        return h + self.shrink(functional.gelu(self.expand(self.mlp_norm(h))))


class GPT(nn.Module):
    """A causal transformer over tokens.

    Args:
        shape: Its sizes.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        dim = shape.hidden_dim
        self.token_embedding = nn.Embedding(VOCABULARY_SIZE, dim)
        self.position_embedding = nn.Parameter(0.01 * torch.randn(shape.sequence_length, dim))
        self.sos = nn.Parameter(0.02 * torch.randn(dim))
        self.blocks = nn.ModuleList(Block(dim, shape.num_heads) for _ in range(shape.num_layers))
        self.final_norm = nn.LayerNorm(dim, bias=False)
        self.output_embedding = nn.Linear(dim, VOCABULARY_SIZE, bias=False)

    def hidden_states(self, tokens):
        """int64[B,T] -> h_0 .. h_L, each float[B,T,D]."""
        h = self.token_embedding(tokens[:, :-1])
        h = torch.cat([self.sos.expand(len(tokens), 1, -1), h], dim=1) + self.position_embedding
        states = [h]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states

    def forward(self, tokens):
        """int64[B,T] -> logits float[B,T,V]."""
        return self.output_embedding(self.final_norm(self.hidden_states(tokens)[-1]))


def device_peak_bytes() -> int | None:
    """Peak memory of the accelerator, None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def train(job: Job):
    """A training step."""
    model, tokens = build(job), tokens_of(job)

    def loss():
        return functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())

    return training_step(model, loss)


def features(job: Job):
    """The means over positions of all hidden states."""
    model, tokens = build(job).eval(), tokens_of(job)
    return lambda: means(lambda: model.hidden_states(tokens))


def matmul(job: Job):
    """A product of two square matrices, which shows the machine's peak."""
    torch.set_num_threads(job.threads)
    x = torch.randn(job.units, job.units, dtype=getattr(torch, job.precision))
    return lambda: float((x @ x).max())


def build(job: Job) -> GPT:
    """The network, after torch is configured for the job."""
    torch.set_num_threads(job.threads)
    return GPT(job.shape)


def tokens_of(job: Job):
    """int64[B,T]."""
    return torch.from_numpy(random_tokens(job.shape)).long()


def training_step(model, loss):
    """A step of torch's fused Adam that minimises `loss()`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)

    def run():
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()

    return run


def means(states):
    """Means over positions float32[B,L+1,D] of `states()`, each float[B,T,D], as NumPy."""
    with torch.inference_mode():
        return torch.stack([h.mean(dim=1) for h in states()], dim=1).numpy()
