"""Why a run may end before its last step, as one small number that ranks can agree on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Reason(IntEnum):
    """The highest one any rank brings is the one all follow."""

    NONE = 0
    OUT_OF_TIME = 1
    TERMINATED = 2
    INTERRUPTED = 3


class Broken(BaseException):
    """A signal broke off what ``StopRequest.breakable`` wrapped."""


class StopRequest:
    """What was asked of this process since it started: a signal's wish, or the end of its time."""

    def __init__(self) -> None:
        self._asked = Reason.NONE
        self._deadline: float | None = None
        self._breakable = False

    def end_after(self, seconds: float) -> None:
        """Ask for the end of the run in ``seconds`` from now."""
        self._deadline = time.monotonic() + seconds

    def ask(self, reason: Reason) -> None:
        """Ask for the end of the run at the next step border."""
        self._asked = max(self._asked, reason)

    @property
    def reason(self) -> Reason:
        """What is asked of this process now."""
        if self._asked is Reason.NONE and self._deadline is not None and time.monotonic() > self._deadline:
            return Reason.OUT_OF_TIME
        return self._asked

    def breakable(self, wait: Callable[[], T]) -> T | None:
        """What ``wait`` returns; None where the end is asked for, before or meanwhile.

        A wish that comes by signal breaks ``wait`` off, so that a rank whose data does not come can still take part in a save.
        """
        try:
            try:
                self._breakable = True
                return wait() if self._asked is Reason.NONE else None
            finally:
                self._breakable = False
        except Broken:
            return None

    def on_signals(self, interrupts: bool) -> None:
        """Turn SIGTERM into a wish; Ctrl-C and a closed terminal too where ``interrupts``, a second Ctrl-C ending the process at once.

        Where not ``interrupts``, those two are left to the process that started this one.
        """
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, self._interrupt if interrupts else signal.SIG_IGN)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._terminate if interrupts else signal.SIG_IGN)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._ask_now(Reason.TERMINATED)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._ask_now(Reason.INTERRUPTED)

    def _ask_now(self, reason: Reason) -> None:
        self.ask(reason)
        if self._breakable:
            self._breakable = False
            raise Broken
