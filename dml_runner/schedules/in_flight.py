"""How many micro-batches' activations a rank holds at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from dml_runner.schedules.base import Action, Schedule


def in_flight(schedule: Schedule) -> tuple[dict[int, int], ...]:
    """Of each rank and each of its virtual stages, the most micro-batches whose activations it holds at a time.

    A stage holds them from ``F`` to ``B``, or to ``W`` where backward is cut in two. The stages of a rank need not reach their peaks
    together: ``peak`` tells what a rank holds in all.
    """
    return tuple(
        {stage: max(held[stage] for held in _held(actions)) for stage in schedule.stages_of(rank)}
        for rank, actions in enumerate(schedule.ranks)
    )


def peak(schedule: Schedule, sizes: Sequence[float]) -> tuple[float, ...]:
    """Of each rank, the most it holds at a time over all its stages.

    Args:
        schedule: the order of the ranks' work.
        sizes: what one micro-batch's activations in each virtual stage count, such as bytes, or 1 to count them.
    """
    return tuple(max(sum(count * sizes[stage] for stage, count in held.items()) for held in _held(actions)) for actions in schedule.ranks)


def _held(actions: Sequence[Action]) -> Iterator[Counter[int]]:
    """By virtual stage, the micro-batches held after each action; the same counter each time."""
    held: Counter[int] = Counter()
    for action in actions:
        held[action.stage] += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
        yield held
