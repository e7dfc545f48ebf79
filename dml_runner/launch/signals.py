"""Signals to the process that started the ranks: one asks the ranks to save and stop, a second Ctrl-C ends everything."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dml_runner.errors import Interrupted
from dml_runner.loops.stop import Reason


class Wish:
    """What the user wished with a signal, and the live ranks that must hear of it."""

    def __init__(self) -> None:
        self.reason = Reason.NONE
        self.pids: Callable[[], list[int]] = list

    def install(self) -> None:
        """Catch SIGTERM, SIGHUP and Ctrl-C here, where this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)
            signal.signal(signal.SIGHUP, self._terminated)
            signal.signal(signal.SIGINT, self._interrupted)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self.reason = max(self.reason, Reason.TERMINATED)
        self.send(signal.SIGTERM)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.reason is Reason.INTERRUPTED:
            self.send(signal.SIGKILL)
            raise Interrupted("stopped at once; the last saved step is kept")
        self.reason = Reason.INTERRUPTED
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every live rank."""
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Give the signal handlers back that stood before."""
    names = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
