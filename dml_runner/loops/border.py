"""Border: what ranks tell each other at the beginning of a step, on its way while the step computes."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

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
        first: whether ranks may be here without batches to compute with.

    Attributes:
        known, wish: see ``Weigh``.
        reason: the strongest wish, once all were heard; until then this rank's.
        weight: of the whole step's batch, once all were heard.
        waited_s: seconds spent waiting for them.
    """

    def __init__(self, world: World, wish: Reason, share: float, whole: float | None, final: bool, first: bool) -> None:
        self.known = None if first else whole
        self.wish = int(wish)
        self.reason = wish
        self.waited_s = 0.0
        self.weight = max(1.0, share) if whole is None else whole
        self._whole, self._final = whole, final
        self._world, self._share = world, share
        self._gathered: Callable[[], Tensor] | None = None

    def ask(self) -> None:
        """See ``Weigh``."""
        if self._world.size > 1 and self._gathered is None:
            self._gathered = self._world.start_gather([float(self.wish), self._share])

    def hear(self, highest: int) -> None:
        """See ``Weigh``.

        Raises:
            Stopped: somebody wishes to end.
        """
        self.reason = Reason(highest)
        if self._final and self.reason is not Reason.NONE:
            raise Stopped

    def __call__(self) -> float:
        """What the whole step's batch weighs; waits for all ranks, once.

        Raises:
            Stopped: somebody wishes to end.
        """
        self.ask()
        highest = self.wish
        if self._gathered is not None:
            started = time.perf_counter()
            wishes, shares = self._gathered().unbind(dim=1)
            self.waited_s = time.perf_counter() - started
            highest = int(wishes.max())
            if self._whole is None:
                self.weight = max(1.0, float(shares.sum()))
        self.hear(highest)
        return self.weight
