"""Pulse: the heartbeat of ranks, in shared memory, so that a hang is noticed from outside the process that hangs.

A rank says when it last got on and how long its next beat may take; whoever watches compares that with the clock.
"""

from __future__ import annotations

import mmap
import statistics
import struct
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

START_ALLOWANCE_S = 600.0
"""Seconds a rank may take until its first step is done: imports, rendezvous, loading, compilation."""
ASLEEP_S = 2.0
"""Seconds without a look after which the listener itself was stopped (Ctrl-Z, a machine that slept): nobody's silence counts then."""
_BEAT = struct.Struct("3d")
"""Step, time of the beat, seconds until the next; both times by the monotonic clock."""


def create(path: Path, ranks: int) -> None:
    """Make the file that ``ranks`` ranks beat into; everyone has just begun."""
    path.write_bytes(_BEAT.pack(0, time.monotonic(), START_ALLOWANCE_S) * ranks)


def _shared(path: Path) -> memoryview[float]:
    """The file's numbers, as everyone who opened it sees and changes them."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("d")


class Pulse:
    """One rank's beats. A beat costs less than a microsecond."""

    def __init__(self, path: Path, rank: int, floor_s: float) -> None:
        """``floor_s``: seconds that every beat may take beside three times the median step."""
        self._mine = _shared(path)[rank * 3 : rank * 3 + 3]
        self._floor_s = floor_s
        self._allowance_s = START_ALLOWANCE_S
        self._steps: deque[float] = deque(maxlen=50)
        self._count = 0

    def beat(self) -> None:
        """Still getting on."""
        self.allow(self._allowance_s)

    def begin(self, step: int) -> None:
        """Step ``step`` begins."""
        self._mine[0] = step
        self.beat()

    def done(self, step_s: float) -> None:
        """A step was done in ``step_s`` seconds; beats may take three times the median step, and the floor."""
        self._steps.append(step_s)
        self._count += 1
        if self._count <= 10 or self._count % 10 == 0:
            self._allowance_s = self._floor_s + 3 * statistics.median(self._steps)
        self.beat()

    def allow(self, seconds: float) -> None:
        """Until the next beat ``seconds`` may pass (a save)."""
        self._mine[1] = time.monotonic()
        self._mine[2] = seconds


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
    """Reads the beats of all ranks, several times a second.

    ``awake_since`` is when it last woke up from a stop of its own, by the monotonic clock.
    """

    def __init__(self, path: Path, ranks: int) -> None:
        self._table = _shared(path)[: ranks * 3]
        self.awake_since = self._looked = time.monotonic()

    def beats(self) -> list[Beat]:
        """The last beat of each rank."""
        now = time.monotonic()
        if now - self._looked > ASLEEP_S:
            self.awake_since = now
        self._looked = now
        table = _BEAT.iter_unpack(self._table)
        return [Beat(int(step), now - max(at, self.awake_since), allowed) for step, at, allowed in table]
