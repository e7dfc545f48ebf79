"""One rank in the calling process, so that debuggers and profilers just work."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dml_runner import pulse
from dml_runner.errors import RunFailed
from dml_runner.generation import generation_text
from dml_runner.launch.prepare import Prepared
from dml_runner.launch.signals import handlers_kept
from dml_runner.loops.stop import StopRequest
from dml_runner.loops.train import Outcome
from dml_runner.pulse import Listener
from dml_runner.run_folder import RunFolder
from dml_runner.seat import Seat
from dml_runner.summary import failed
from dml_runner.worker import Ticket, run_rank

WATCH_S = 0.5


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
        with _watched(Listener(beats, 1), prepared):
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
def _watched(listener: Listener, prepared: Prepared) -> Iterator[None]:
    """Name a hang of this thread, with its stack, and end the process."""
    over = threading.Event()
    arguments = (listener, prepared, threading.get_ident(), over)
    thread = threading.Thread(target=_watch, args=arguments, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(listener: Listener, prepared: Prepared, thread: int, over: threading.Event) -> None:
    folder = prepared.start.folder
    while not over.wait(WATCH_S):
        beat = listener.beats()[0]
        if not beat.overdue or _debugged(thread):
            continue
        frame = traceback.extract_stack(sys._current_frames()[thread])[-1]
        late = f"no progress for {beat.silent_s:.1f} s, and {beat.allowed_s:.1f} s are allowed"
        error = RunFailed(f"rank 0 hangs in step {beat.step}: {late}; it stands in {frame.filename}:{frame.lineno}; see {folder.log(0)}")
        print(error, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            with folder.log(0).open("a") as log:
                faulthandler.dump_traceback(log, all_threads=True)
            failed(folder, prepared.layout, max(0.0, time.time() - prepared.generation.began), error)
        os._exit(error.exit_code)


def _debugged(thread: int) -> bool:
    """Whether somebody steps through a thread: then it stands still because they think."""
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    if monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None:
        return True
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_trace is not None:
            return True
        frame = frame.f_back
    return False
