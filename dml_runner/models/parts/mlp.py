"""The feed-forward half of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, silu


class Mlp(nn.Module):
    """Widen, GELU, narrow (Hendrycks and Gimpel 2016).

    ``approximate="tanh"`` is the approximation that GPT-2 was trained with (Radford et al. 2018), ``"none"`` the exact form of BERT.
    """

    def __init__(self, hidden: int, inner: int, dropout: float, bias: bool = True, approximate: str = "tanh") -> None:
        super().__init__()
        self.dropout = dropout
        self.approximate = approximate
        self.up = nn.Linear(hidden, inner, bias=bias)
        self.down = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, hidden) -> the same shape."""
        x = self.down(gelu(self.up(x), approximate=self.approximate))
        return dropout(x, self.dropout) if self.training and self.dropout else x


class SwiGlu(nn.Module):
    """Widen twice, one of the two through SiLU as the other's gate, narrow (Shazeer 2020)."""

    def __init__(self, hidden: int, inner: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate = nn.Linear(hidden, inner, bias=bias)
        self.up = nn.Linear(hidden, inner, bias=bias)
        self.down = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, hidden) -> the same shape."""
        x = self.down(silu(self.gate(x)) * self.up(x))
        return dropout(x, self.dropout) if self.training and self.dropout else x


def build_mlp(kind: str, hidden: int, inner: int, dropout: float, bias: bool = True) -> nn.Module:
    """The MLP called ``gelu`` or ``swiglu``, ``inner`` wide between ``hidden`` and ``hidden``."""
    return (SwiGlu if kind == "swiglu" else Mlp)(hidden, inner, dropout, bias)
