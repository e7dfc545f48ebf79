"""Desk: hands out the slices of steps to workers that do not wait for each other, and holds back who is too far ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable


class Desk:
    """Tickets for slices, numbered from 1 through all steps: step k has the tickets (k - 1) n + 1 to k n of its n slices.

    A worker's clock is the number of its pushes. Under bounded staleness it is held back while its clock is more than the bound ahead
    of the slowest living worker's (Ho et al. 2013, section 3).

    Args:
        workers: who may come.
        slices: of a step.
        staleness: pushes a worker may be ahead of the slowest; None: any number.

    Attributes:
        widest_gap: most pushes by which a worker that took a ticket was ahead of the slowest.
    """

    def __init__(self, workers: Iterable[int], slices: int, staleness: int | None) -> None:
        self._clocks = dict.fromkeys(workers, 0)
        self._slices, self._staleness = slices, staleness
        self._next = 1
        self._border = self._until = 0
        self._again: deque[int] = deque()
        self._held: dict[int, int] = {}
        self._behind: set[int] = set()
        self.widest_gap = 0
        self._changed = threading.Condition()

    def begin_after(self, step: int) -> None:
        """The run goes on after ``step``; called before anybody comes."""
        self._next = step * self._slices + 1

    def take(self, worker: int, until: int, closing: bool) -> tuple[int, int, bool]:
        """The next ticket for a worker that has finished its last, and the step all stop after.

        Args:
            worker: who comes.
            until: the step all workers stop after; the same from all.
            closing: whether it wishes to stop earlier: no step is begun then that nobody has begun.

        Returns:
            (ticket, last step, behind). Ticket 0: there is none before all have met. Behind: the worker was too far ahead when it
            finished its last, so the weights it was given then lack pushes that the bound promises it.
        """
        with self._changed:
            if worker in self._held:
                del self._held[worker]
                self._clocks[worker] += 1
                if not self._may_go(worker):
                    self._behind.add(worker)
                self._changed.notify_all()
            if until != self._border:
                self._border = self._until = until
            if closing:
                self._until = min(self._until, -(-(self._next - 1) // self._slices))
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_over() or self._may_go(worker))
            if self._is_over():
                return 0, self._until, False
            ticket = self._again.popleft() if self._again else self._next
            self._next = max(self._next, ticket + 1)
            self._held[worker] = ticket
            gap = self._clocks[worker] - min(self._clocks.values())
            assert self._staleness is None or gap <= self._staleness
            self.widest_gap = max(self.widest_gap, gap)
            behind = worker in self._behind
            self._behind.discard(worker)
            return ticket, self._until, behind

    def leave(self, worker: int) -> None:
        """A worker died; the slice it held is handed out again."""
        with self._changed:
            self._clocks.pop(worker, None)
            if worker in self._held:
                self._again.append(self._held.pop(worker))
            self._changed.notify_all()

    def _is_over(self) -> bool:
        return not self._again and self._next > self._until * self._slices

    def _may_go(self, worker: int) -> bool:
        return self._staleness is None or self._clocks[worker] - min(self._clocks.values()) <= self._staleness
