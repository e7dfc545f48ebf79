"""A rank that no longer gets on: which one it is, and where it stands."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dml_runner.pulse import Listener

STACK_WAIT_S = 0.5
"""Seconds the ranks get to write their stacks."""
_WAITING_FOR_PEERS = (
    "distributed_c10d.py",
    "autograd/graph.py",
    "comm/world.py",
    "comm/meeting.py",
    "comm/links.py",
    "parallel/push_pull.py",
    "parallel/server.py",
)
"""Ends of the files a rank stands in while it waits for another."""


@dataclass(frozen=True)
class Hang:
    """A silence that lasted too long.

    Attributes:
        rank: the rank that holds the others up, or None where the stacks do not tell.
        frozen: whether its process is stopped (SIGSTOP).
        silent_s: seconds since its last beat.
        allowed_s: seconds that were allowed.
        stack: its Python stack, innermost call first.
    """

    rank: int | None
    frozen: bool
    silent_s: float
    allowed_s: float
    stack: tuple[str, ...]

    def __str__(self) -> str:
        who = "the ranks hang" if self.rank is None else f"rank {self.rank} " + ("is frozen" if self.frozen else "hangs")
        where = f"; its stack: {' < '.join(self.stack[:3])}" if self.stack else ""
        return f"{who}: no progress for {self.silent_s:.1f} s, and {self.allowed_s:.1f} s are allowed{where}"


class Hangs:
    """Looks for a rank that no longer gets on: by its pulse, or because its process is stopped."""

    def __init__(self, listener: Listener, stacks: Sequence[Path], floor_s: float) -> None:
        """``stacks`` are the files into which each rank writes its stack on SIGUSR1; ``floor_s``: seconds a process may be stopped."""
        self._listener = listener
        self._stacks = stacks
        self._floor_s = floor_s
        self._stopped_at: dict[int, float] = {}

    def find(self, pids: Sequence[int], gone: Collection[int] = ()) -> Hang | None:
        """The hang among the processes ``pids`` (one a rank), or None while every pulse is in time; ranks ``gone`` have none."""
        beats = [beat for rank, beat in enumerate(self._listener.beats()) if rank not in gone]
        stopped = self._stopped(pids)
        if stopped is not None:
            return stopped
        if not any(beat.overdue for beat in beats):
            return None
        latest = max(beats, key=lambda beat: beat.silent_s - beat.allowed_s)
        for rank, pid in enumerate(pids):
            if _state(pid) in "Tt":
                return Hang(rank, True, latest.silent_s, latest.allowed_s, ())
        _ask_for_stacks(pids)
        found = [_read_stack(path) for path in self._stacks]
        culprit = _not_waiting(found)
        return Hang(culprit, False, latest.silent_s, latest.allowed_s, found[culprit] if culprit is not None else ())

    def _stopped(self, pids: Sequence[int]) -> Hang | None:
        """The process that a signal has stopped for longer than it may be, whatever it was doing."""
        now = time.monotonic()
        for rank, pid in enumerate(pids):
            if _state(pid) != "T":
                self._stopped_at.pop(rank, None)
                continue
            seconds = now - max(self._stopped_at.setdefault(rank, now), self._listener.awake_since)
            if seconds > self._floor_s:
                return Hang(rank, True, seconds, self._floor_s, ())
        return None


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "X"


def _ask_for_stacks(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    time.sleep(STACK_WAIT_S)


def _read_stack(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    starts = [n for n, line in enumerate(lines) if "most recent call first" in line]
    return tuple(line.strip() for line in lines[starts[-1] + 1 :] if line.startswith("  File")) if starts else ()


def _not_waiting(stacks: Sequence[tuple[str, ...]]) -> int | None:
    busy = [rank for rank, stack in enumerate(stacks) if stack and not any(word in stack[0] for word in _WAITING_FOR_PEERS)]
    return busy[0] if len(busy) == 1 else None
