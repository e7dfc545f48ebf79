"""A rank that watches itself, where nobody on its host watches all: it ends when it makes no progress, and says where it stands."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from dml_runner.errors import RunFailed
from dml_runner.launch.failure import record
from dml_runner.pulse import Listener
from dml_runner.run_folder import RunFolder

WATCH_S = 0.5


@contextmanager
def ended_at_a_standstill(folder: RunFolder, rank: int, size: int, beats: Path, screen: TextIO) -> Iterator[None]:
    """End this process with code 5 when the calling thread's beats stay away for longer than they may.

    A rank that waits for one that hangs, or that is no longer reached, stands still as well: each says where it stands.
    """
    over = threading.Event()
    listener, thread = Listener(beats, size), threading.get_ident()

    def watch() -> None:
        while not over.wait(WATCH_S):
            beat = listener.beats()[rank]
            if not beat.overdue:
                continue
            frame = traceback.extract_stack(sys._current_frames()[thread])[-1]
            late = f"no progress for {beat.silent_s:.1f} s, and {beat.allowed_s:.1f} s are allowed"
            text = f"rank {rank}, on host {socket.gethostname()}, stands still in step {beat.step}: {late}"
            error = RunFailed(f"{text}; it stands in {frame.filename}:{frame.lineno}; see {folder.log(rank)}")
            with suppress(OSError):
                screen.write(f"{error}\n")
                screen.flush()
            record(folder, rank, error)
            with suppress(OSError):
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
            os._exit(error.exit_code)

    watcher = threading.Thread(target=watch, name="watchdog", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
