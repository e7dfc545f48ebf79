"""Whether starting again helps: a crash loop makes no progress."""

from __future__ import annotations

SAME_STEP = 3
"""Failures in a row at one step, with no step saved in between, that make a crash loop."""
WITHOUT_SAVE = 10
"""Failures in a row with no step saved in between, wherever they were."""


class Restarts:
    """Remembers the failures of a run."""

    def __init__(self) -> None:
        self._committed: int | None = None
        self._failed_at: list[int] = []

    def judge(self, failed_at: int, committed: int) -> str | None:
        """Take in a failure in step ``failed_at`` when ``committed`` is the last saved one; a verdict when enough is enough."""
        if committed != self._committed:
            self._committed, self._failed_at = committed, []
        self._failed_at.append(failed_at)
        if self._failed_at[-SAME_STEP:] == [failed_at] * SAME_STEP:
            return f"a crash loop: {SAME_STEP} failures in a row in step {failed_at}, and no step saved after {committed}"
        if len(self._failed_at) >= WITHOUT_SAVE:
            return f"a crash loop: {WITHOUT_SAVE} failures in a row and no step saved after {committed}"
        return None
