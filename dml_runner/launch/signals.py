"""Signals to the process that started the ranks: one asks the ranks to save and stop, a second Ctrl-C ends everything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dml_runner.errors import Interrupted
from dml_runner.loops.stop import Reason


class Wish:
    """What the user wished with a signal. A handler only notes it: who watches the ranks passes it on."""

    def __init__(self) -> None:
        self.reason = Reason.NONE

    def install(self) -> None:
        """Catch SIGTERM, Ctrl-C and, unless it is ignored (nohup), SIGHUP here, where this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)
            signal.signal(signal.SIGINT, self._interrupted)
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                signal.signal(signal.SIGHUP, self._terminated)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self.reason = max(self.reason, Reason.TERMINATED)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.reason is Reason.INTERRUPTED:
            raise Interrupted("stopped at once; the last saved step is kept")
        self.reason = Reason.INTERRUPTED


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Give the signal handlers back that stood before."""
    names = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
