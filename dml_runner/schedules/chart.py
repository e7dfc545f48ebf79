"""A timeline as text of a fixed width, for the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import groupby

from dml_runner.schedules.base import MEANING, Action
from dml_runner.schedules.timeline import Timed, Timeline

_WAITS = "."


def as_text(timeline: Timeline, width: int = 100) -> str:
    """A line a rank: each action as its kind, its micro-batch and dashes as long as it runs, dots where the rank waits, and its idle share.

    Where a usual action is shorter than a column, letters stand in proportion to time instead, and numbers are left out. A last line says
    what the letters mean.

    Args:
        timeline: predicted or measured.
        width: most characters a line of a rank has; at least 40 are used.
    """
    ranks = len(timeline.ranks)
    names = [f"rank {rank}".ljust(len(f"rank {ranks - 1}")) for rank in range(ranks)]
    idle = [f"idle {100 * share:3.0f} %" for share in timeline.idle]
    columns = min(_columns_for_names(timeline), max(40, width) - len(names[0]) - len(idle[0]) - 4)
    column = timeline.makespan / columns
    numbered = column <= timeline.shortest * (1 + 1e-9)
    row = _named if numbered else _filled
    rows = [row(actions, timeline, columns) for actions in timeline.ranks]
    lines = [f"{name}  {cells}  {share}" for name, cells, share in zip(names, rows, idle, strict=True)]
    return "\n".join([*lines, _legend(timeline, numbered)])


def _columns_for_names(timeline: Timeline) -> int:
    """Columns with which a usual action has room for its letter and number."""
    longest_name = max(len(_name(timed.action, 1)) for actions in timeline.ranks for timed in actions)
    shortest = timeline.shortest
    return math.ceil(timeline.makespan / shortest * longest_name - 1e-6) if shortest > 0 else sys.maxsize


def _named(actions: Sequence[Timed], timeline: Timeline, columns: int) -> str:
    """What a rank does in the middle of each column."""
    remaining = iter(actions)
    current = next(remaining, None)
    seen: list[Action | None] = []
    for column in range(columns):
        middle = timeline.start + (column + 0.5) * timeline.makespan / columns
        while current is not None and current.end <= middle:
            current = next(remaining, None)
        seen.append(current.action if current is not None and current.start <= middle else None)
    return "".join(_cell(action, len(list(run)), len(timeline.ranks)) for action, run in groupby(seen))


def _filled(actions: Sequence[Timed], timeline: Timeline, columns: int) -> str:
    """What a rank does as letters in proportion to time: what a column has too little room for weighs in the next."""
    column = timeline.makespan / columns
    weights = [{_WAITS: 1.0} for _ in range(columns)]
    for timed in actions:
        letter = _name(timed.action, len(timeline.ranks))[0]
        start, end = (timed.start - timeline.start) / column, (timed.end - timeline.start) / column
        for place in range(int(start), min(columns, math.ceil(end))):
            share = min(end, place + 1) - max(start, place)
            weights[place][letter] = weights[place].get(letter, 0.0) + share
            weights[place][_WAITS] -= share
    owed: dict[str, float] = {}
    row = ""
    for weight in weights:
        owed = {letter: owed.get(letter, 0.0) + weight.get(letter, 0.0) for letter in {**owed, **weight}}
        row += max(owed, key=owed.__getitem__)
        owed[row[-1]] -= 1
    return row


def _cell(action: Action | None, length: int, ranks: int) -> str:
    if action is None:
        return _WAITS * length
    name = _name(action, ranks)
    return (name if len(name) <= length else name[0]).ljust(length, "-")


def _name(action: Action, ranks: int) -> str:
    """``F3``; ``f3`` in a rank's later stages."""
    return f"{action.kind if action.stage < ranks else action.kind.lower()}{action.micro}"


def _legend(timeline: Timeline, numbered: bool) -> str:
    used = {timed.action.kind for actions in timeline.ranks for timed in actions}
    entries = [f"{kind} {meaning}" for kind, meaning in MEANING.items() if kind in used]
    entries += ["numbers micro-batches"] if numbered else []
    entries += ["small letters a rank's later stages"] if timeline.chunks > 1 else []
    return ", ".join([*entries, f"{_WAITS} waiting"])
