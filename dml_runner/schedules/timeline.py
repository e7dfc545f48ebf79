"""When each action of a schedule runs, from what its pieces cost; a measured step has the same form."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property

from dml_runner.schedules.base import Action, Schedule


@dataclass(frozen=True)
class Costs:
    """Seconds that the pieces of one micro-batch take.

    Attributes:
        forward: of each virtual stage.
        backward: of each virtual stage, the gradients of its weights included.
        weight: the part of ``backward`` that the gradients of weights take, where they are computed apart.
        transfer: of the activation that virtual stage v sends to v + 1, and of its gradient on the way back; one fewer than the stages.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    weight: tuple[float, ...]
    transfer: tuple[float, ...]

    def of(self, action: Action) -> float:
        """Seconds of ``action``."""
        stage = action.stage
        if action.kind == "F":
            return self.forward[stage]
        if action.kind == "B":
            return self.backward[stage]
        return self.weight[stage] if action.kind == "W" else self.backward[stage] - self.weight[stage]


def equal_costs(stages: int, forward: float = 1.0, backward: float = 2.0, weight: float = 1.0, transfer: float = 0.0) -> Costs:
    """The costs of ``stages`` virtual stages that are all alike."""
    return Costs((forward,) * stages, (backward,) * stages, (weight,) * stages, (transfer,) * (stages - 1))


@dataclass(frozen=True, slots=True)
class Timed:
    """An action and when it ran, in seconds from any moment that all ranks share."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """One step: what each pipeline rank did, and when. Predicted by ``timeline``, or measured.

    Attributes:
        ranks: of each rank, its actions in the order of time.
    """

    ranks: tuple[tuple[Timed, ...], ...]

    @cached_property
    def start(self) -> float:
        """When the first action began, in seconds."""
        return min(timed.start for actions in self.ranks for timed in actions)

    @cached_property
    def makespan(self) -> float:
        """Seconds from the first action's start to the last one's end, over all ranks."""
        return max(timed.end for actions in self.ranks for timed in actions) - self.start

    @cached_property
    def idle(self) -> tuple[float, ...]:
        """Of each rank, the share of the makespan in which it computed nothing: 0 to 1."""
        whole = self.makespan
        return tuple(1 - sum(timed.end - timed.start for timed in actions) / whole if whole else 0.0 for actions in self.ranks)

    @property
    def idle_share(self) -> float:
        """The share of all ranks' time in which they computed nothing, which is called the bubble: 0 to 1."""
        return sum(self.idle) / len(self.idle)

    @cached_property
    def shortest(self) -> float:
        """Seconds of a usual action of the shortest kind: the least of the kinds' medians."""
        lasted: dict[str, list[float]] = {}
        for timed in (timed for actions in self.ranks for timed in actions):
            lasted.setdefault(timed.action.kind, []).append(timed.end - timed.start)
        return min(statistics.median(seconds) for seconds in lasted.values())

    @cached_property
    def chunks(self) -> int:
        """Virtual stages a rank."""
        return 1 + max(timed.action.stage for actions in self.ranks for timed in actions) // len(self.ranks)


def timeline(schedule: Schedule, costs: Costs) -> Timeline:
    """Run ``schedule`` on paper.

    An action starts as soon as its rank is free and its inputs have come. A message leaves when its action ends, travels while both ranks
    compute, and messages between the same two ranks in the same direction follow one another.

    Raises:
        ValueError: the ranks wait for each other, so that the schedule never ends.
    """
    done: list[list[Timed]] = [[] for _ in schedule.ranks]
    known: dict[tuple[Action, int], float] = {}
    link_free: dict[tuple[int, int], float] = {}
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.ranks):
            for action in actions[len(done[rank]) :]:
                free = done[rank][-1].end if done[rank] else 0.0
                needs = [(need, rank) for need in schedule.needs(action)]
                if any(need not in known for need in needs):
                    break
                start = max([free, *(known[need] for need in needs)])
                timed = Timed(action, start, start + costs.of(action))
                done[rank].append(timed)
                known[action, rank] = timed.end
                _send(schedule, costs, timed, known, link_free)
                moved = True
    stuck = [f"rank {rank} at {actions[len(done[rank])]}" for rank, actions in enumerate(schedule.ranks) if len(done[rank]) < len(actions)]
    if stuck:
        raise ValueError(f"schedule {schedule.name} never ends: {', '.join(stuck)}")
    return Timeline(tuple(tuple(actions) for actions in done))


def _send(
    schedule: Schedule, costs: Costs, timed: Timed, known: dict[tuple[Action, int], float], link_free: dict[tuple[int, int], float]
) -> None:
    """Put an action's result on its way to the rank that reads it: fill in when it is known there, and when the link is free again."""
    reader = schedule.reader(timed.action)
    sender = schedule.rank_of(timed.action.stage)
    if reader is None or schedule.rank_of(reader.stage) == sender:
        return
    receiver = schedule.rank_of(reader.stage)
    leaves = max(timed.end, link_free.get((sender, receiver), 0.0))
    comes = leaves + costs.transfer[min(timed.action.stage, reader.stage)]
    known[timed.action, receiver] = link_free[sender, receiver] = comes
