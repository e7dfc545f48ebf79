"""The order in which micro-batches pass the stages of a rank, forwards and backwards in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from dml_runner.schedules.base import Action, Kind

Slots = Sequence[Action | None]


def grouped(microbatches: int, groups: int) -> tuple[range, ...]:
    """The micro-batches, divided in their order into ``groups`` groups whose sizes differ by 1 at most."""
    ends = [microbatches * group // groups for group in range(groups + 1)]
    return tuple(range(first, last) for first, last in pairwise(ends))


def slots(kind: Kind, stages: Sequence[int], groups: Sequence[range], size: int) -> list[Action | None]:
    """Group by group, all micro-batches of a group through one of ``stages``, then all through the next.

    Each group takes ``size`` slots a stage. Those that a smaller group leaves over are None: so the ranks stay in step with each other,
    and a schedule of full groups, which never ends in a deadlock, does not begin to do so when some of its micro-batches are left out.
    """
    return [
        Action(kind, stage, group[place]) if place < len(group) else None for group in groups for stage in stages for place in range(size)
    ]


def alternate(forwards: Slots, backwards: Slots, warm_up: int) -> tuple[Action, ...]:
    """The first ``warm_up`` forwards, then a forward and a backward in turn, then the backwards that are left."""
    ahead = min(warm_up, len(forwards))
    order = list(forwards[:ahead])
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        order += [forward, backward]
    order += backwards[len(forwards) - ahead :]
    return tuple(action for action in order if action is not None)


def weights_put_off(actions: Sequence[Action], waiting: int) -> Iterator[Action]:
    """``actions`` with the gradients of weights after each ``I``, ``waiting`` micro-batches late; those that are left come at the end."""
    late: deque[Action] = deque()
    for action in actions:
        yield action
        if action.kind == "I":
            late.append(Action("W", action.stage, action.micro))
            if len(late) > waiting:
                yield late.popleft()
    yield from late
