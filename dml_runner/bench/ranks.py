"""Ranks of a bench as processes: each runs one module, and what rank 0 found comes back as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dml_runner.bench.processes import end, unplaced
from dml_runner.errors import RunFailed
from dml_runner.seat import die_with

GRACE_S = 5.0
"""Seconds that ranks have to end by themselves once one of them failed, before they are killed."""
TIMEOUT = timedelta(minutes=5)


def here(command: list[str]) -> list[str]:
    """A place for a rank: this host."""
    return command


def run_module(module: str, ask: Any, places: Sequence[Callable[[list[str]], list[str]]], interface: str) -> Any:
    """Run ``module`` once in each of ``places``, as ranks that begin with ``be_rank``; what rank 0 found.

    Args:
        module: its full name.
        ask: what every rank is told, as JSON.
        places: each makes of a command the command that runs it there.
        interface: by which the ranks reach each other.

    Raises:
        RunFailed: a rank failed; with its last line.
    """
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # hosts of a laboratory have no names, of which torch would warn
    environment = {**unplaced(), **quiet, "GLOO_SOCKET_IFNAME": interface}
    with tempfile.TemporaryDirectory(prefix="dml-") as name:
        folder = Path(name)
        (folder / "ask.json").write_text(json.dumps(ask))
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, place in enumerate(places):
                words = [str(folder), str(rank), str(len(places)), str(os.getpid())]
                with (folder / f"{rank}.log").open("wb") as log:
                    command = place([sys.executable, "-m", module, *words])
                    processes.append(
                        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
                    )
            _wait(processes, folder)
        finally:
            end(processes, 0.0)
        return json.loads((folder / "found.json").read_text())


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Until all are done, or one failed: that one's error is told, not those of the others that lost it."""
    failed: list[int] = []
    while not failed and any(process.poll() is None for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.poll()]
        time.sleep(0.02)
    failed = failed or [rank for rank, process in enumerate(processes) if process.returncode]
    if failed:
        end(processes, GRACE_S)
        rank = failed[0]
        lines = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "without a word"
        raise RunFailed(f"rank {rank} of the bench ended with code {processes[rank].returncode}: {said}")


@dataclass(frozen=True)
class Place:
    """Where a rank of a bench is.

    Attributes:
        rank: 0 to size - 1.
        size: all ranks.
        store: where they met.
        group: of all of them.
    """

    rank: int
    size: int
    store: dist.Store
    group: dist.ProcessGroup

    def barrier(self) -> None:
        """Return when all ranks are here."""
        self.group.barrier().wait()

    def gather(self, mine: Tensor) -> Tensor:
        """Everyone's tensor of one shape, as rows."""
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        self.group.allgather([everyone], [mine]).wait()
        return torch.stack(everyone)


def be_rank(arguments: Sequence[str], work: Callable[[Any, Place], Any]) -> None:
    """Meet the other ranks, do ``work`` with what was asked, and leave what it returns on rank 0 where ``run_module`` finds it."""
    folder, (rank, size, starter) = Path(arguments[0]), map(int, arguments[1:4])
    die_with(starter)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    assert dist.group.WORLD is not None
    found = work(json.loads((folder / "ask.json").read_text()), Place(rank, size, dist.PrefixStore("bench", store), dist.group.WORLD))
    if rank == 0:
        draft = folder / "draft"
        draft.write_text(json.dumps(found))
        os.replace(draft, folder / "found.json")
    sys.stdout.flush()
    os._exit(0)  # threads that serve and sum would abort an interpreter that takes itself apart around them


def carried(interface: str) -> tuple[int, int]:
    """Bytes that an interface of this process's network has sent and received (proc(5), net/dev: figures nine and one)."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, colon, figures = line.partition(":")
        if colon and name.strip() == interface:
            found = figures.split()
            return int(found[8]), int(found[0])
    raise LookupError(f"no interface {interface}")
