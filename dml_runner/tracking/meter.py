"""What the last rows of a run say: throughput, share of time waiting for data, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping

from dml_runner.tracking.wording import duration, loss_text, number, short

MEMORY_S = 3.0
"""Seconds of steps over which throughput and waiting are averaged, about."""


class Meter:
    """Takes training rows cheaply; words are made when somebody looks."""

    def __init__(self, steps: int) -> None:
        self.step = 0
        self.steps = steps
        self._row: Mapping[str, object] = {}
        self._first: tuple[int, float] | None = None
        self._last = 0.0
        self._spent = self._waited = self._done = 0.0
        self._unit = "samples/s"

    def take(self, row: Mapping[str, object]) -> None:
        """Take the row of a step."""
        self._row, self._last = row, time.monotonic()
        step, spent = number(row, "step"), number(row, "step_time_s") or 0.0
        self.step = int(step or 0)
        if self._first is None:
            self._first = self.step, self._last
        rate = number(row, "tokens_per_s")
        self._unit = "samples/s" if rate is None else "tokens/s"
        if rate is None:
            rate = number(row, "samples_per_s") or 0.0
        keep = max(0.0, 1.0 - spent / MEMORY_S)
        self._spent = keep * self._spent + spent
        self._waited = keep * self._waited + (number(row, "data_wait_s") or 0.0)
        self._done = keep * self._done + rate * spent

    @property
    def share(self) -> float:
        """Part of the run that is done, 0 to 1."""
        return min(self.step / self.steps, 1.0) if self.steps > 0 else 1.0

    def words(self) -> list[str]:
        """Loss, time left, throughput and waiting, as far as they are known; empty before the first row."""
        if not self._row:
            return []
        parts, left = [f"loss {loss_text(number(self._row, 'loss'))}"], self._left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        if self._spent > 0:
            parts.append(f"{short(self._done / self._spent)} {self._unit}")
            parts.append(f"data wait {min(self._waited / self._spent, 1.0):.0%}")
        return parts

    def _left(self) -> float | None:
        if self._first is None or self.step <= self._first[0]:
            return None
        per_step = (self._last - self._first[1]) / (self.step - self._first[0])
        return max(0.0, (self.steps - self.step) * per_step - (time.monotonic() - self._last))
