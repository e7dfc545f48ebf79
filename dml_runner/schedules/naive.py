"""Naive: a micro-batch goes through all stages and back before the next one starts, so one rank works at a time.

With equal stages each of K ranks idles (K - 1) / K of the time. This is what the other schedules are measured against.
"""

from __future__ import annotations

from dml_runner.schedules.base import Action


def order(rank: int, ranks: int, microbatches: int, chunks: int) -> tuple[Action, ...]:
    """The actions of ``rank``; ``chunks`` is 1."""
    return tuple(Action(kind, rank, micro) for micro in range(microbatches) for kind in ("F", "B"))
