"""Zero bubble: the gradients of weights, which nobody waits for, are put off until a rank would wait.

With one chunk it is ZB-H1 (Qi et al. 2023, arXiv:2401.10241): the order of 1F1B, backward cut into I and W, and rank r runs each W r
micro-batches late. With F, I and W the seconds of a micro-batch in one stage, the paper's law for the idle time of K equal stages is
(K - 1)(F + I - W): a third of 1F1B's (K - 1)(F + I + W) where the three are equal. A rank holds what a W needs until it has run, so
each holds up to K micro-batches, as the first rank does under 1F1B, and K - r of them wait for their I.

With C chunks the order is that of interleaved 1F1B, with fewer forwards ahead. A third of that schedule's idle time is left where the three
are equal and M >= K, and a rank holds at most K C micro-batches of one stage each where K divides M or at least half of K is left over.
"""

from __future__ import annotations

from dml_runner.schedules.base import Action
from dml_runner.schedules.parts.order import alternate, grouped, slots, weights_put_off


def order(rank: int, ranks: int, microbatches: int, chunks: int) -> tuple[Action, ...]:
    """The actions of ``rank``, whose virtual stages are rank, rank + ranks, and so on."""
    stages = range(rank, ranks * chunks, ranks)
    groups = _groups(ranks, microbatches, chunks)
    sizes = set(map(len, groups))
    size = max(ranks, *sizes)
    behind = ranks - 1 - rank
    # Groups that are larger than K and differ need the slack of interleaved 1F1B, or the smaller ones make ranks wait.
    ahead = 2 * behind if size > ranks and len(sizes) > 1 else behind
    forwards, inputs = slots("F", stages, groups, size), slots("I", stages[::-1], groups, size)
    return tuple(weights_put_off(alternate(forwards, inputs, (chunks - 1) * size + ahead), waiting=rank))


def _groups(ranks: int, microbatches: int, chunks: int) -> tuple[range, ...]:
    """Groups of K, the last one smaller; where that is less than half full, it would leave ranks waiting and is spread over the others."""
    if chunks > 1 and 2 * (microbatches % ranks) < ranks:
        return grouped(microbatches, max(1, microbatches // ranks))
    return tuple(range(first, min(first + ranks, microbatches)) for first in range(0, microbatches, ranks))
