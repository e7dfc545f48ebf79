"""Pulse: the heartbeat of ranks, in shared memory, so that a hang is noticed from outside the process that hangs.

A rank says when it last got on and how long its next beat may take; whoever watches compares that with the clock.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

START_ALLOWANCE_S = 600.0
"""Seconds a rank may take until its first step is done: imports, rendezvous, loading, compilation."""
_FIELDS = 3


def create(path: Path, ranks: int) -> None:
    """Make the file that ``ranks`` ranks beat into; everyone has just begun."""
    table = np.zeros((ranks, _FIELDS))
    table[:, 1] = time.monotonic()
    table[:, 2] = START_ALLOWANCE_S
    path.write_bytes(table.tobytes())


class Pulse:
    """One rank's beats. A beat costs about a microsecond."""

    def __init__(self, path: Path, rank: int, floor_s: float) -> None:
        """``floor_s``: seconds that every beat may take beside three times the median step."""
        self._mine = np.memmap(path, dtype=np.float64, mode="r+", offset=rank * _FIELDS * 8, shape=(_FIELDS,))
        self._floor_s = floor_s
        self._allowance_s = START_ALLOWANCE_S
        self._steps: deque[float] = deque(maxlen=50)
        self._count = 0

    def beat(self) -> None:
        """Still getting on."""
        self._mine[1:] = time.monotonic(), self._allowance_s

    def begin(self, step: int) -> None:
        """Step ``step`` begins."""
        self._mine[:] = step, time.monotonic(), self._allowance_s

    def done(self, step_s: float) -> None:
        """A step was done in ``step_s`` seconds; beats may take three times the median step, and the floor."""
        self._steps.append(step_s)
        self._count += 1
        if self._count <= 10 or self._count % 10 == 0:
            self._allowance_s = self._floor_s + 3 * statistics.median(self._steps)
        self.beat()

    def allow(self, seconds: float) -> None:
        """Until the next beat ``seconds`` may pass (a save)."""
        self._mine[1:] = time.monotonic(), seconds


@dataclass(frozen=True)
class Beat:
    """What was last heard of a rank.

    Attributes:
        step: the step it began last.
        silent_s: seconds since its last beat.
        allowed_s: seconds that beat may last.
    """

    step: int
    silent_s: float
    allowed_s: float

    @property
    def overdue(self) -> bool:
        """Whether the rank hangs."""
        return self.silent_s > self.allowed_s


class Listener:
    """Reads the beats of all ranks."""

    def __init__(self, path: Path, ranks: int) -> None:
        self._table = np.memmap(path, dtype=np.float64, mode="r", shape=(ranks, _FIELDS))

    def beats(self) -> list[Beat]:
        """The last beat of each rank."""
        now = time.monotonic()
        return [Beat(int(step), now - at, allowed) for step, at, allowed in self._table.tolist()]
