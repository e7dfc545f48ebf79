"""Self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.rotary import Rotary


class CausalSelfAttention(nn.Module):
    """Attention in which a position sees itself and what came before (Vaswani et al. 2017, section 3.2).

    With fewer ``kv_heads`` than ``heads``, each key and value head serves ``heads / kv_heads`` query heads that stand next to each
    other (Ainslie et al. 2023).
    """

    def __init__(
        self, hidden: int, heads: int, dropout: float, kv_heads: int | None = None, bias: bool = True, rotary: Rotary | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.width = hidden // heads
        self.dropout = dropout
        self.rotary = rotary
        self.qkv = nn.Linear(hidden, (heads + 2 * self.kv_heads) * self.width, bias=bias)
        self.out = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(batch, length, hidden) -> the same shape.

        With a cache, ``x`` continues what the cache holds: it is empty, or ``x`` is one token long.
        """
        batch, length, hidden = x.shape
        query, key, value = (part.transpose(1, 2) for part in self._project(x, 0 if cache is None else cache.length))
        if cache is not None:
            key, value = cache.extend(self, key, value)
        mixed = self._mix(query, key, value)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return dropout(mixed, self.dropout) if self.training and self.dropout else mixed

    def _project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, length, heads, width) each; queries and keys turned to their positions."""
        projected = self.qkv(x).view(*x.shape[:2], -1, self.width)
        if self.rotary is None:
            query, key, value = projected.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
            return query, key, value
        placed, value = projected.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        query, key = self.rotary(placed, start).split((self.heads, self.kv_heads), dim=2)
        return query, key, value

    def _mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(batch, heads, length, width) of queries, and keys and values with ``kv_heads`` -> the queries' shape."""
        if query.shape[2] == 1:  # the newest token sees every key, so the queries that share a head can stand as its rows
            rows = query.reshape(query.shape[0], self.kv_heads, -1, self.width)
            return scaled_dot_product_attention(rows, key, value, dropout_p=self._dropout()).reshape(query.shape)
        assert key.shape[2] == query.shape[2], "a cache that holds tokens is continued one token at a time"
        grouped = self.kv_heads < self.heads
        if grouped and query.is_cuda and query.dtype == torch.float32:  # the kernel that knows groups needs 16 bits there
            key, value, grouped = self._repeat(key), self._repeat(value), False
        return scaled_dot_product_attention(query, key, value, dropout_p=self._dropout(), is_causal=True, enable_gqa=grouped)

    def _repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.heads // self.kv_heads, dim=1)

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0
