"""One rank in the calling process, so that debuggers and profilers just work."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dml_runner import pulse
from dml_runner.generation import generation_text
from dml_runner.launch.prepare import Prepared
from dml_runner.launch.signals import handlers_kept
from dml_runner.loops.stop import StopRequest
from dml_runner.loops.train import Outcome
from dml_runner.pulse import Listener
from dml_runner.run_folder import RunFolder
from dml_runner.seat import Seat
from dml_runner.worker import Ticket, run_rank

WATCH_S = 0.5
HANG_EXIT = 5


def run_here(prepared: Prepared, stop: StopRequest) -> Outcome:
    """Train in this process.

    Raises:
        DmlError: what ended the run before its end.
    """
    folder = prepared.start.folder
    with tempfile.TemporaryDirectory(prefix="dml-") as shared, _logging(folder), handlers_kept():
        beats = Path(shared) / "pulse"
        pulse.create(beats, 1)
        if threading.current_thread() is threading.main_thread():
            stop.on_signals(interrupts=True)
        with _watched(Listener(beats, 1), folder):
            ticket = Ticket(str(folder.path), prepared.job, generation_text(prepared.generation), str(beats), os.getpid())
            return run_rank(ticket, Seat(generation=prepared.generation.number), None, sys.stderr, stop)


@contextmanager
def _logging(folder: RunFolder) -> Iterator[None]:
    handler = logging.FileHandler(folder.log(0))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("dml_runner").setLevel(logging.INFO)
    try:
        logging.getLogger("dml_runner").info("rank 0, process %d", os.getpid())
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


@contextmanager
def _watched(listener: Listener, folder: RunFolder) -> Iterator[None]:
    """Name a hang of the main thread, with its stack, and end the process."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(listener, folder, over), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(listener: Listener, folder: RunFolder, over: threading.Event) -> None:
    while not over.wait(WATCH_S):
        beat = listener.beats()[0]
        if beat.overdue and not sys.gettrace():
            late = f"it has not got on for {beat.silent_s:.1f} s ({beat.allowed_s:.1f} s are allowed)"
            line = f"rank 0: hangs in step {beat.step}; {late}; its stack is in {folder.log(0)}"
            with folder.log(0).open("a") as log:
                faulthandler.dump_traceback(log, all_threads=True)
            print(line, file=sys.stderr, flush=True)
            os._exit(HANG_EXIT)
