"""GPipe: all forwards, then all backwards (Huang et al. 2019, arXiv:1811.06965).

With equal stages K ranks idle (K - 1) / (M + K - 1) of the time, and each holds the activations of all M micro-batches. Backwards go in the
order of the forwards, so that gradients are summed in the same order under every schedule.
"""

from __future__ import annotations

from dml_runner.schedules.base import Action


def order(rank: int, ranks: int, microbatches: int, chunks: int) -> tuple[Action, ...]:
    """The actions of ``rank``; ``chunks`` is 1."""
    return tuple(Action(kind, rank, micro) for kind in ("F", "B") for micro in range(microbatches))
