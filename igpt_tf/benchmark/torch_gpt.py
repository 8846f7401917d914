"""A rival: a plain GPT in torch with its fused attention, of exactly our shapes and weights."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm attention and MLP, without biases; torch's fused norm, attention and GELU."""

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
    """Predicts each token from those before it.

    Args:
        num_layers, dim, num_heads, vocabulary_size, length: L, D, heads, V, T.
    """

    def __init__(
        self, *, num_layers: int, dim: int, num_heads: int, vocabulary_size: int, length: int
    ):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary_size, dim)
        self.position_embedding = nn.Parameter(0.01 * torch.randn(length, dim))
        self.sos = nn.Parameter(0.02 * torch.randn(dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(dim, bias=False)
        self.output_embedding = nn.Linear(dim, vocabulary_size, bias=False)

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
