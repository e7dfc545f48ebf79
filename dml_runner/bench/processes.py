"""Processes that a bench starts: what they inherit, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
