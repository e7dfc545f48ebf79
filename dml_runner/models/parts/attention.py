"""Self-attention."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and what came before (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, hidden) -> the same shape."""
        batch, length, hidden = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, hidden // self.heads).transpose(1, 2) for part in self.qkv(x).split(hidden, dim=2)
        )
        p = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(query, key, value, dropout_p=p, is_causal=True)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return dropout(mixed, p) if p else mixed
