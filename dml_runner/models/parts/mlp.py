"""The feed-forward half of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import dropout, gelu


class Mlp(nn.Module):
    """Widen, GELU, narrow (Radford et al. 2018: the tanh form that GPT-2 was trained with is ``approximate="tanh"``)."""

    def __init__(self, hidden: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, hidden) -> the same shape."""
        x = self.down(gelu(self.up(x), approximate="tanh"))
        return dropout(x, self.dropout) if self.training and self.dropout else x
