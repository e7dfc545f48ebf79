"""Start the ranks of ``dml bench comm`` and ``dml bench links``, and hear what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dml_runner.bench.comm_rank import Ask, Found
from dml_runner.bench.processes import end, unplaced
from dml_runner.errors import RunFailed

GRACE_S = 5.0
"""Seconds that ranks have to end by themselves once one of them failed, before they are killed."""


def run_ranks(ask: Ask, places: Sequence[Callable[[list[str]], list[str]]], interface: str) -> tuple[list[Found], float]:
    """Have a rank in each of ``places`` measure ``ask``; what they found, and the rate of a link in bytes a second.

    Args:
        places: each makes of a command the command that runs it there.
        interface: by which the ranks reach each other.

    Raises:
        RunFailed: a rank failed; with its last line.
    """
    environment = {**unplaced(), "GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="dml-") as name:
        folder = Path(name)
        ask.write(folder / "ask.json")
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, place in enumerate(places):
                words = [str(folder), str(rank), str(len(places)), str(os.getpid())]
                with (folder / f"{rank}.log").open("wb") as log:
                    command = place([sys.executable, "-m", "dml_runner.bench.comm_rank", *words])
                    processes.append(
                        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
                    )
            _wait(processes, folder)
        finally:
            end(processes, 0.0)
        told: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return [Found(**each) for each in told["found"]], told["rate"]


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Until all are done, or one failed: that one's error is told, not those of the others that lost it."""
    while any(process.poll() is None for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.poll()]
        if failed:
            end(processes, GRACE_S)
            break
        time.sleep(0.02)
    else:
        failed = [rank for rank, process in enumerate(processes) if process.returncode]
    if failed:
        rank = failed[0]
        lines = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
        raise RunFailed(
            f"rank {rank} of the bench ended with code {processes[rank].returncode}: {lines[-1] if lines else 'without a word'}"
        )
