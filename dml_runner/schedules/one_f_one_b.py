"""1F1B: each backward as soon as it can (PipeDream-Flush; Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1).

It idles as much as GPipe, but rank r of K holds at most K - r micro-batches, however many a step has.
"""

from __future__ import annotations

from dml_runner.schedules.base import Action
from dml_runner.schedules.parts.order import alternate


def order(rank: int, ranks: int, microbatches: int, chunks: int) -> tuple[Action, ...]:
    """The actions of ``rank``; ``chunks`` is 1."""
    forwards = [Action("F", rank, micro) for micro in range(microbatches)]
    backwards = [Action("B", rank, micro) for micro in range(microbatches)]
    return alternate(forwards, backwards, warm_up=ranks - 1 - rank)
