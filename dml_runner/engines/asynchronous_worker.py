"""The engine of a worker that does not wait for other workers: each slice it takes is an update of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from dml_runner.checkpoint.read import Committed
from dml_runner.comm.world import World
from dml_runner.engines.base import StepReport, Weigh
from dml_runner.engines.server_engine import ShareState
from dml_runner.engines.worker_engine import WorkerEngine
from dml_runner.layout import Layout
from dml_runner.models.base import Batch, Model
from dml_runner.optim.parts.clip import diverged
from dml_runner.parallel.asynchronous_server import AsynchronousServer, Tickets
from dml_runner.parallel.push_pull import PushPull


@dataclass(frozen=True)
class FreeInmate:
    """A server in a worker's process that serves whoever comes."""

    server: AsynchronousServer
    state: ShareState

    def begin(self, rate: float) -> None:
        """It waits for nobody."""

    def end(self) -> None:
        """See ``Inmate``."""
        self.server.check()


class FreeWorker(WorkerEngine):
    """A worker that pushes the gradient of one slice of a step at a time, at the rate it likes.

    n pushes make a step, each at 1/n of the step's learning rate: as many samples move the weights about as far as one step of all
    workers together would.
    """

    def __init__(
        self,
        model: Model,
        exchange: PushPull,
        inmate: FreeInmate | None,
        tickets: Tickets,
        layout: Layout,
        world: World,
        seed: int,
        clip_norm: float | None,
    ) -> None:
        super().__init__(model, exchange, inmate, layout, world, seed)
        self._lodger = inmate
        self._tickets = tickets
        self._slices = layout.mesh.data
        self._clip_norm = clip_norm
        self._behind = False

    @property
    def clock_gap(self) -> int:
        """See ``AsynchronousServer.clock_gap``; 0: no server is in this process."""
        return 0 if self._lodger is None else self._lodger.server.clock_gap

    def take(self, until: int, closing: bool) -> tuple[int, int, int]:
        """(step, slice of it, last step) of what this worker computes next; step 0: nothing, before all have met after the last step."""
        ticket, last, behind = self._tickets.take(until, closing)
        if behind:
            super()._settle()
            self._tickets.look_again()
            self._servers.pull()
        step, part = divmod(ticket - 1, self._slices) if ticket else (-1, 0)
        return step + 1, part, last

    def step(self, number: int, batches: Sequence[Batch], weight: Weigh, rate: float) -> StepReport:
        """Push the gradient of the mean loss over one slice of step ``number``; ``weight`` is the slice's, ``rate`` the step's."""
        started = time.perf_counter()
        self._behind = False
        self._begin(number)
        self._tickets.announce(rate / self._slices)
        with nullcontext() if self._clip_norm is None else self._servers.accumulate():
            loss_sum = self._backward(batches, weight)
        norm = self._norm
        if self._clip_norm is not None:
            length = self._servers.gradient_norm()
            self._servers.scale_gradients(min(1.0, self._clip_norm / max(length, 1e-30)))
            norm = lambda: length  # noqa: E731
        _refuse_infinite(self._servers.norm())
        self._servers.finish()
        waited = self._servers.take_waited()
        return StepReport(loss_sum, norm, time.perf_counter() - started - waited, waited, 0.0)

    def settle(self) -> None:
        """Return when this worker's last push is done; from then on others may have changed weights that it does not have.

        Raises:
            Diverged: a gradient was not finite; it changed nothing.
        """
        super()._settle()
        _refuse_infinite(self._servers.norm())
        self._behind = True

    def _settle(self) -> None:
        """Have the servers' present weights; all workers have settled, so they are the same for all."""
        super()._settle()
        if self._behind:
            self._behind = False
            self._tickets.look()
            self._servers.pull()
            super()._settle()

    def restore(self, step: Committed) -> None:
        """See ``Engine.restore``."""
        super().restore(step)
        if self._lodger is not None:
            self._lodger.server.begin_after(step.step)

    def close(self) -> None:
        """Say goodbye to the servers."""
        super().close()
        self._tickets.leave()
        if self._lodger is not None:
            self._lodger.server.close()


def _refuse_infinite(norm: float) -> None:
    if not math.isfinite(norm):
        raise diverged(norm, "the weights are as they were before it")
