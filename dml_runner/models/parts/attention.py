"""Self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.rotary import Rotary


def qkv_rows(hidden: int, heads: int, kv_heads: int | None) -> tuple[int, int, int]:
    """Rows of the queries, the keys and the values in the matrix of all three, ``qkv``."""
    width = hidden // heads
    return heads * width, (kv_heads or heads) * width, (kv_heads or heads) * width


class _Attention(nn.Module):
    """What attends: one matrix for queries, keys and values, and one back to the residual stream (Vaswani et al. 2017, section 3.2).

    With fewer ``kv_heads`` than ``heads``, each key and value head serves ``heads / kv_heads`` query heads that stand next to each
    other (Ainslie et al. 2023). The rows of ``qkv`` tell how many heads are here, so that it may hold a share of them (``TensorPlan``).
    """

    def __init__(self, hidden: int, heads: int, dropout: float, kv_heads: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.width = hidden // heads
        self.dropout = dropout
        self.qkv = nn.Linear(hidden, sum(qkv_rows(hidden, heads, kv_heads)), bias=bias)
        self.out = nn.Linear(hidden, hidden, bias=bias)

    def _project(self, x: Tensor) -> tuple[Tensor, int, int]:
        """(batch, length, heads + 2 x kv_heads, width) of the heads that are here, and the number of each of the two kinds."""
        projected = self.qkv(x)
        projected = projected.view(*projected.shape[:2], -1, self.width)
        kv_heads = projected.shape[2] * self.kv_heads // (self.heads + 2 * self.kv_heads)
        return projected, projected.shape[2] - 2 * kv_heads, kv_heads

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """(batch, heads, length, width) of queries, and keys and values with ``kv_heads`` -> the queries' shape."""
        shared = query.shape[1] // key.shape[1]
        if shared > 1 and query.is_cuda and (query.dtype == torch.float32 or mask is not None):  # no kernel knows groups there
            key, value, shared = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1), 1
        rate = self._dropout()
        return scaled_dot_product_attention(query, key, value, mask, dropout_p=rate, is_causal=causal, enable_gqa=shared > 1)

    def _finish(self, mixed: Tensor) -> Tensor:
        """(batch, heads, length, width) -> (batch, length, hidden)."""
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        return dropout(mixed, self.dropout) if self.training and self.dropout else mixed

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


class SelfAttention(_Attention):
    """Attention in which a position sees every other."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, length, hidden) -> the same shape.

        Positions where ``mask`` (batch, length), bool, is false are seen by none; of a sample without any other, the mix is 0.
        """
        projected, heads, kv_heads = self._project(x)
        query, key, value = projected.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
        return self._finish(self._mix(query, key, value, None if mask is None else mask[:, None, None], causal=False))


class CausalSelfAttention(_Attention):
    """Attention in which a position sees itself and what came before."""

    def __init__(
        self, hidden: int, heads: int, dropout: float, kv_heads: int | None = None, bias: bool = True, rotary: Rotary | None = None
    ) -> None:
        super().__init__(hidden, heads, dropout, kv_heads, bias)
        self.rotary = rotary

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(batch, length, hidden) -> the same shape.

        With a cache, ``x`` continues what the cache holds: it is empty, or ``x`` is one token long.
        """
        query, key, value = (part.transpose(1, 2) for part in self._place(x, 0 if cache is None else cache.length))
        if cache is not None:
            key, value = cache.extend(self, key, value)
        if query.shape[2] == 1:  # the newest token sees every key, so the queries that share a head can stand as its rows
            rows = query.reshape(query.shape[0], key.shape[1], -1, self.width)
            mixed = scaled_dot_product_attention(rows, key, value, dropout_p=self._dropout()).reshape(query.shape)
        else:
            assert key.shape[2] == query.shape[2], "a cache that holds tokens is continued one token at a time"
            mixed = self._mix(query, key, value, None, causal=True)
        return self._finish(mixed)

    def _place(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, length, heads, width) each; queries and keys turned to their positions."""
        projected, heads, kv_heads = self._project(x)
        if self.rotary is None:
            query, key, value = projected.split((heads, kv_heads, kv_heads), dim=2)
            return query, key, value
        placed, value = projected.split((heads + kv_heads, kv_heads), dim=2)
        query, key = self.rotary(placed, start).split((heads, kv_heads), dim=2)
        return query, key, value
