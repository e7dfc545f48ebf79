"""Why a run may end before its last step, as one small number that ranks can agree on."""

from __future__ import annotations

import signal
import time
from enum import IntEnum
from types import FrameType


class Reason(IntEnum):
    """The highest one any rank brings is the one all follow."""

    NONE = 0
    OUT_OF_TIME = 1
    TERMINATED = 2
    INTERRUPTED = 3


class StopRequest:
    """What was asked of this process since it started: a signal's wish, or the end of its time."""

    def __init__(self) -> None:
        self._asked = Reason.NONE
        self._deadline: float | None = None

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

    def on_signals(self, interrupts: bool) -> None:
        """Turn SIGTERM into a wish; Ctrl-C too where ``interrupts``, a second one ending the process at once.

        Where not ``interrupts``, Ctrl-C is left to the process that started this one.
        """
        signal.signal(signal.SIGTERM, lambda *_: self.ask(Reason.TERMINATED))
        signal.signal(signal.SIGINT, self._interrupt if interrupts else signal.SIG_IGN)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.ask(Reason.INTERRUPTED)
