"""Interleaved 1F1B: 1F1B with several virtual stages a rank (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.2).

The pipeline fills and drains in steps of one virtual stage: with equal stages, C chunks and M >= K micro-batches K ranks idle
(K - 1) / (M C + K - 1) of the time. The paper wants a multiple of K micro-batches, which pass a rank's stages in groups of K. Here the
groups are as equal as M allows and never smaller than K, which keeps the law for every M >= K.
"""

from __future__ import annotations

from dml_runner.schedules.base import Action
from dml_runner.schedules.parts.order import alternate, grouped, slots


def order(rank: int, ranks: int, microbatches: int, chunks: int) -> tuple[Action, ...]:
    """The actions of ``rank``, whose virtual stages are rank, rank + ranks, and so on."""
    stages = range(rank, ranks * chunks, ranks)
    groups = grouped(microbatches, max(1, microbatches // ranks) if chunks > 1 else 1)
    size = max(ranks, *map(len, groups))
    behind = ranks - 1 - rank
    return alternate(
        slots("F", stages, groups, size),
        slots("B", stages[::-1], groups, size),
        warm_up=(chunks - 1) * size + (2 * behind if chunks > 1 else behind),
    )
