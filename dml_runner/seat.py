"""Seat: where a process sits among the ranks, and what this machine gives it."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seat:
    """One process among all.

    Attributes:
        rank: 0 to size - 1.
        size: all ranks.
        local_rank: position among the ranks of this host.
        local_size: ranks of this host.
        generation: number of the start it belongs to.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    generation: int = 0


def given_by_launcher(environment: Mapping[str, str]) -> bool:
    """Whether a launcher from outside made this process a rank."""
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def seat_from_environment(environment: Mapping[str, str], generation: int) -> Seat:
    """The seat that a launcher wrote into RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."""
    size = int(environment["WORLD_SIZE"])
    local_rank = int(environment.get("LOCAL_RANK", 0))
    return Seat(int(environment["RANK"]), size, local_rank, int(environment.get("LOCAL_WORLD_SIZE", size)), generation)


def pin_to_cores(seat: Seat) -> int:
    """Give this rank its share of the cores this process may use, and return how many threads it shall compute with.

    A rank that is alone is not pinned, and computes with OMP_NUM_THREADS threads where the user set that.
    """
    cores = sorted(os.sched_getaffinity(0))
    if seat.local_size == 1:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        return int(asked) if asked.isdigit() and int(asked) else len(cores)
    share = len(cores) // seat.local_size
    if share == 0:
        return 1
    os.sched_setaffinity(0, cores[seat.local_rank * share : (seat.local_rank + 1) * share])
    return share


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies (Linux, prctl)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def die_with(pid: int) -> None:
    """End this process, in whatever it is, when process ``pid`` of this host is gone."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        return
    threading.Thread(target=_follow, args=(watched,), name="follow", daemon=True).start()


def _follow(watched: int) -> None:
    select.select([watched], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


def print_to(log: Path, stack: Path) -> int:
    """Send what this process prints to ``log``, its stack on SIGUSR1 to ``stack``; returns a descriptor of the old stderr."""
    screen = os.dup(2)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=stack.open("w"), all_threads=False)
    return screen
