"""What every tracker does, and how several are served without one of them stopping the training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

LOG = logging.getLogger("dml_runner.tracking")


class Tracker(Protocol):
    """Receives what a run measures, on rank 0."""

    def log(self, row: Mapping[str, object]) -> None:
        """Take a row as it stands in metrics.jsonl; one with ``eval_loss`` is an evaluation."""

    def note(self, text: str) -> None:
        """Take a line meant for people."""

    def finish(self, summary: Mapping[str, object]) -> None:
        """Take how the run ended (summary.json) and let go of everything held. Called once, last."""


class Trackers:
    """A tracker that serves several.

    What one of them raises is reported once, as a note to the others and a log line, and goes no further. The run's own
    (console, metrics.jsonl) are tried again with the next row; an outside one is dropped.
    """

    def __init__(self, own: Sequence[Tracker], outside: Sequence[Tracker] = ()) -> None:
        self._own = tuple(own)
        self._members = [*own, *outside]
        self._reported: set[int] = set()

    def log(self, row: Mapping[str, object]) -> None:
        """Hand a row to every member."""
        self._each(lambda member: member.log(row))

    def note(self, text: str) -> None:
        """Hand a line to every member."""
        self._each(lambda member: member.note(text))

    def finish(self, summary: Mapping[str, object]) -> None:
        """Finish every member, the outside ones first, so that what they report is still shown."""
        self._members.reverse()
        self._each(lambda member: member.finish(summary), "")
        self._members.clear()

    def _each(self, act: Callable[[Tracker], None], after: str = "; training goes on") -> None:
        for member in tuple(self._members):
            try:
                act(member)
            except Exception as error:
                self._failed(member, f"{type(member).__name__.lower()}: {first_line(error)}{after}")

    def _failed(self, member: Tracker, text: str) -> None:
        kept = member in self._own
        if not kept:
            self._members.remove(member)
        if id(member) in self._reported:
            return
        self._reported.add(id(member))
        LOG.log(logging.WARNING if kept else logging.INFO, text)
        for other in self._members:
            if other is not member:
                try:
                    other.note(text)
                except Exception:
                    LOG.warning("%s could not show it", type(other).__name__.lower())


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
