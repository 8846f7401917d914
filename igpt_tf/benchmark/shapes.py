"""The sizes that are measured, and the arithmetic that a model of such a size needs."""

import dataclasses

VOCABULARY_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Shape:
    """A causal model and how many images it takes at once.

    Attributes:
        num_layers: L.
        hidden_dim: D.
        num_heads: Heads.
        side: H = W, so that T = side^2.
        batch_size: B.
    """

    num_layers: int
    hidden_dim: int
    num_heads: int
    side: int
    batch_size: int

    @property
    def length(self) -> int:
        """T."""
        return self.side**2

    @property
    def num_tokens(self) -> int:
        """B T."""
        return self.batch_size * self.length

    def forward_flops(self) -> int:
        """Multiplications and additions of one forward pass's matrix products.

        Attention counts the pairs that a causal model has, T (T + 1) / 2: what an implementation
        computes beyond them is its own affair.
        """
        matrices = 12 * self.num_layers * self.hidden_dim**2 + VOCABULARY_SIZE * self.hidden_dim
        pairs = self.length * (self.length + 1) // 2
        attention = 2 * self.num_layers * self.hidden_dim * pairs
        return 2 * self.batch_size * (self.length * matrices + attention)

    def train_flops(self) -> int:
        """Those of a training step: the backward pass has two products for each of forward's."""
        return 3 * self.forward_flops()


NANO = Shape(num_layers=8, hidden_dim=256, num_heads=8, side=16, batch_size=16)
S = Shape(num_layers=24, hidden_dim=512, num_heads=8, side=32, batch_size=2)
M = Shape(num_layers=36, hidden_dim=1024, num_heads=8, side=32, batch_size=2)
L = Shape(num_layers=48, hidden_dim=1536, num_heads=16, side=32, batch_size=2)
TINY = Shape(num_layers=2, hidden_dim=16, num_heads=2, side=4, batch_size=2)
