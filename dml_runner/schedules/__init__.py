"""In which order the ranks of a pipeline compute: schedules as data, what they hold, how long they take, and how they look. No torch."""

from __future__ import annotations

from collections.abc import Callable

from dml_runner.errors import PlanError, Problem
from dml_runner.layout import Stages
from dml_runner.schedules import gpipe, interleaved, naive, one_f_one_b, zero_bubble
from dml_runner.schedules.base import Action, Schedule

_ORDERS: dict[str, Callable[[int, int, int, int], tuple[Action, ...]]] = {
    "naive": naive.order,
    "gpipe": gpipe.order,
    "1f1b": one_f_one_b.order,
    "interleaved_1f1b": interleaved.order,
    "zero_bubble": zero_bubble.order,
}
SEVERAL_CHUNKS = ("interleaved_1f1b", "zero_bubble")
"""The schedules in which a rank may hold several virtual stages."""


def build(stages: Stages, ranks: int, microbatches: int) -> Schedule:
    """The schedule that ``stages`` names, for ``ranks`` pipeline ranks and ``microbatches`` micro-batches a step; 1 or more of each.

    Raises:
        PlanError: several chunks under a schedule that has one.
    """
    name, chunks = stages.schedule, stages.chunks
    if chunks > 1 and name not in SEVERAL_CHUNKS:
        hint = f"{' and '.join(SEVERAL_CHUNKS)} have several"
        raise PlanError(Problem("strategy.chunks", f"{name} has one virtual stage a rank", got=str(chunks), allowed="1", hint=hint))
    orders = tuple(_ORDERS[name](rank, ranks, microbatches, chunks) for rank in range(ranks))
    return Schedule(name, ranks * chunks, microbatches, orders)
