"""The console of rank 0: one live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from dml_runner.tracking.meter import Meter
from dml_runner.tracking.wording import ending, evaluation, number

if TYPE_CHECKING:
    from rich.text import Text

REFRESHES_PER_S = 4
PLAIN_LINE_EVERY_S = 1.0
BAR = 24
"""Width of the bar in characters, where the terminal is wide enough."""
COLORS = {"completed": "bold green", "failed": "bold red"}


class Console:
    """Shows a run to a person.

    Args:
        stream: where to; a terminal gets a live line, anything else plain lines.
        name: of the run.
        steps: number of its last step.
        ranks: processes it runs on.
    """

    def __init__(self, stream: TextIO, name: str, steps: int, ranks: int) -> None:
        self._stream = stream
        self._meter = Meter(steps)
        title = name if ranks == 1 else f"{name} x{ranks}"
        self._screen = _Screen(stream, title, self._meter) if _animates(stream) else None
        self._next_line = 0.0

    def log(self, row: Mapping[str, object]) -> None:
        """Show a training row soon (at the next refresh, or unless a line was written within the last second), an evaluation row now."""
        if "eval_loss" in row:
            self._say(f"step {number(row, 'step') or 0:,.0f}  {evaluation(row)}", "cyan")
            return
        self._meter.take(row)
        if self._screen is not None:
            self._screen.open()
        else:
            self._plain()

    def note(self, text: str) -> None:
        """Show a line now."""
        self._say(text)

    def finish(self, summary: Mapping[str, object]) -> None:
        """Take the live line away and say how the run ended, and where its ``folder`` is if the summary names it."""
        status = str(summary.get("status"))
        if self._screen is not None:
            self._screen.close()
        self._say(ending(summary), COLORS.get(status, "bold yellow"))
        if "folder" in summary:
            self._say(str(summary["folder"]))

    def _plain(self) -> None:
        now, meter = time.monotonic(), self._meter
        if now >= self._next_line or meter.step >= meter.steps:
            self._next_line = now + PLAIN_LINE_EVERY_S
            self._say("  ".join([f"step {meter.step:,}/{meter.steps:,}", *meter.words()]))

    def _say(self, text: str, style: str = "") -> None:
        if self._screen is not None:
            self._screen.say(text, style)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()


class _Screen:
    """A line at the bottom of a terminal, redrawn by a thread a few times a second; what is said scrolls by above it."""

    def __init__(self, stream: TextIO, title: str, meter: Meter) -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        self._title, self._meter = title, meter
        self._began = time.monotonic()
        self._terminal = Terminal(file=stream, force_terminal=True, highlight=False, soft_wrap=True)
        self._live = Live(
            get_renderable=self._line,
            console=self._terminal,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._state = "new"

    def open(self) -> None:
        """Show the line, if it is not there yet. The cursor stays visible: a killed run leaves a terminal that works."""
        if self._state == "new":
            self._state = "open"
            atexit.register(self.close)
            self._live.start()
            self._terminal.show_cursor(True)

    def say(self, text: str, style: str) -> None:
        """Print above the line."""
        from rich.text import Text

        self._terminal.print(Text(text, style))
        self.open()

    def close(self) -> None:
        """Take the line away for good; a stream that is gone already is no error."""
        state, self._state = self._state, "closed"
        if state == "open":
            atexit.unregister(self.close)
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()

    def _line(self) -> Text:
        from rich.text import Text

        meter = self._meter
        words = meter.words() or [f"first step {time.monotonic() - self._began:.0f} s"]
        rest = "  ".join([f"{meter.step:,}/{meter.steps:,}", *words])
        ascii_only = self._terminal.options.ascii_only
        line = Text(no_wrap=True, overflow="crop" if ascii_only else "ellipsis")
        line.append(self._title, "bold").append("  ")
        room = min(BAR, self._terminal.width - line.cell_len - len(rest) - 3)
        if room >= BAR // 3:
            filled = int(room * meter.share)
            full, empty = ("#", "-") if ascii_only else ("━", "━")
            line.append(full * filled, "green").append(empty * (room - filled), "bright_black").append("  ")
        return line.append(rest)


def _animates(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
