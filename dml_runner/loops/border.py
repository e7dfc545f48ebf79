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
        reason: the strongest wish, once ``weight`` was called; until then this rank's.
        waited_s: seconds spent in ``weight``.
    """

    def __init__(self, world: World, wish: Reason, share: float, whole: float | None, final: bool) -> None:
        self.reason = wish
        self.waited_s = 0.0
        self._share, self._whole, self._final = share, whole, final
        self._gathered = None if world.size == 1 else world.start_gather([float(wish), share])

    def weight(self) -> float:
        """What the whole step's batch weighs; waits for all ranks, once.

        Raises:
            Stopped: somebody wishes to end.
        """
        if self._gathered is not None:
            started = time.perf_counter()
            wishes, shares = self._gathered().unbind(dim=1)
            self.waited_s = time.perf_counter() - started
            self.reason, self._share = Reason(int(wishes.max())), float(shares.sum())
        if self._final and self.reason is not Reason.NONE:
            raise Stopped
        return max(1.0, self._share) if self._whole is None else self._whole
