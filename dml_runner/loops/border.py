"""Border: what ranks tell each other at the beginning of a step, on its way while the step's first forward runs."""

from __future__ import annotations

import time

from dml_runner.comm.world import World
from dml_runner.loops.stop import Reason


class Stopped(Exception):
    """All ranks end here, before the step has changed anything."""


class Border:
    """Everyone's wish to end, and what everyone's share of the step's batch weighs.

    Args:
        world: the ranks; all make a border together.
        wish: this rank's.
        share: what its batches weigh.
        whole: what the whole step's batch weighs, where that is known; None: the sum of the shares.
        final: whether ranks may end here; else the step is done whatever they wish.

    Attributes:
        reason: the strongest wish, once ``weight`` was called.
        waited_s: seconds spent in ``weight``.
    """

    def __init__(self, world: World, wish: Reason, share: float, whole: float | None, final: bool) -> None:
        self.reason = Reason.NONE
        self.waited_s = 0.0
        self._gathered = world.start_gather([float(wish), share])
        self._whole, self._final = whole, final

    def weight(self) -> float:
        """What the whole step's batch weighs; waits for all ranks, once.

        Raises:
            Stopped: somebody wishes to end.
        """
        started = time.perf_counter()
        wishes, shares = self._gathered().unbind(dim=1)
        self.waited_s = time.perf_counter() - started
        self.reason = Reason(int(wishes.max()))
        if self._final and self.reason is not Reason.NONE:
            raise Stopped
        return max(1.0, float(shares.sum())) if self._whole is None else self._whole
