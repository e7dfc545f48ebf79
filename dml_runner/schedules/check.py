"""Whether a schedule is one: all the work, each piece once, where its stage lives, and in an order that ends."""

from __future__ import annotations

from collections import Counter

from dml_runner.schedules.base import Action, Kind, Schedule
from dml_runner.schedules.timeline import equal_costs, timeline


def check(schedule: Schedule) -> None:
    """Pass if ``schedule`` can be executed.

    Raises:
        ValueError: a piece of work is missing, is there twice, or stands on a rank that does not hold its stage; or the ranks wait for
            each other for ever.
    """
    kinds: tuple[Kind, ...] = ("F", "I", "W") if schedule.splits_backward else ("F", "B")
    work = {Action(kind, stage, micro) for kind in kinds for stage in range(schedule.stages) for micro in range(schedule.microbatches)}
    planned = Counter(action for actions in schedule.ranks for action in actions)
    wrong = [f"{action} is missing" for action in work - planned.keys()]
    wrong += [f"{action} is no work of this step" for action in planned.keys() - work]
    wrong += [f"{action} is there {count} times" for action, count in planned.items() if count > 1]
    wrong += [
        f"rank {rank} does not hold the stage of {action}"
        for rank, actions in enumerate(schedule.ranks)
        for action in actions
        if schedule.rank_of(action.stage) != rank
    ]
    if wrong:
        raise ValueError(f"schedule {schedule.name}: {'; '.join(sorted(wrong))}")
    timeline(schedule, equal_costs(schedule.stages))
