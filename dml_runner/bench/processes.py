"""Processes that are ranks of a bench: what they inherit, and how they end."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def unplaced() -> dict[str, str]:
    """This process's environment without what a launcher says of its place among ranks."""
    return {key: value for key, value in os.environ.items() if key not in PLACES}


def end(processes: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """Wait ``grace_s`` for processes, then kill those that are left."""
    limit = time.monotonic() + grace_s
    for process in processes:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
