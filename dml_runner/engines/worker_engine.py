"""The engine of a worker whose weights servers hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed
from dml_runner.comm.pairs import Within
from dml_runner.comm.world import World
from dml_runner.engines.base import StepReport, Weigh
from dml_runner.engines.copies import WorkerCopies
from dml_runner.engines.server_engine import ShareState
from dml_runner.engines.whole_model import WholeModel
from dml_runner.engines.wire_memory import Remembered
from dml_runner.layout import Layout
from dml_runner.models.base import Batch, Guess, Model
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.parallel.push_pull import PushPull
from dml_runner.parallel.server import Server


class Inmate(Protocol):
    """A server in a worker's process."""

    @property
    def state(self) -> ShareState:
        """Its share, for checkpoints."""

    def begin(self, rate: float) -> None:
        """A step begins."""

    def end(self) -> None:
        """Return when it has served the step.

        Raises:
            Diverged: the gradient is not finite.
            RuntimeError: a worker is gone.
        """


class LockstepInmate:
    """A server in a worker's process that serves in a thread of its own, a step at a time.

    Args:
        server: what serves.
        state: its share, for checkpoints.
        door: the server's side of the pair with the worker of this process.
    """

    def __init__(self, server: Server, state: ShareState, door: Within) -> None:
        self.state = state
        self._server, self._door = server, door
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def begin(self, rate: float) -> None:
        """See ``Inmate``."""
        self.end()
        self._thread = threading.Thread(target=self._serve, args=(rate,), name="server", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """See ``Inmate``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            raise self._failure

    def _serve(self, rate: float) -> None:
        try:
            self._server.step(rate)
        except BaseException as failure:
            self._failure = failure
            self._door.close()


class WorkerEngine(WholeModel):
    """A rank that computes gradients and leaves updates to servers; one of them may live in this process, as its inmate.

    Attributes:
        copies: of what workers save; None: servers have no replicas.
    """

    def __init__(
        self,
        model: Model,
        exchange: PushPull,
        inmate: Inmate | None,
        layout: Layout,
        world: World,
        seed: int,
        remembered: Remembered | None = None,
    ) -> None:
        super().__init__(model, exchange, layout, world, seed)
        self._servers = exchange
        self._inmate = inmate
        self._remembered = remembered
        self._part = layout.saver(world.rank)
        self._parts = [part for part in map(layout.saver, range(layout.mesh.size)) if part is not None]
        self.copies: WorkerCopies | None = None
        if layout.servers is not None and layout.servers.replicas:
            buffers = frozenset(f"model/{name}" for name, _ in model.named_buffers())
            own: Callable[[], Iterator[Piece]] = remembered.pieces if remembered else lambda: iter(())
            self.copies = WorkerCopies(self._rest, buffers, self._parts, self._part, own)

    def step(self, number: int, batches: Sequence[Batch], weight: Weigh, rate: float) -> StepReport:
        """Push the gradients of update ``number``; the weights it leads to are waited for where they are wanted."""
        started = time.perf_counter()
        weight.ask()
        self._begin(number)

        def begin() -> float:
            whole = weight()
            if self._inmate is not None:
                self._inmate.begin(rate)
            return whole

        with self._blaming_inmate():
            loss_sum = self._backward(batches, begin)
            self._servers.finish()
        waited = self._servers.take_waited()
        return StepReport(loss_sum, self._norm, time.perf_counter() - started - waited, waited, 0.0)

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Guess]:
        """See ``WholeModel.evaluate``."""
        self._settle()
        return super().evaluate(batch)

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """See ``WholeModel.forward``."""
        self._settle()
        return super().forward(batch, cache)

    def fingerprint(self) -> tuple[list[str], Tensor]:
        """See ``WholeModel.fingerprint``."""
        self._settle()
        return super().fingerprint()

    def state(self) -> Iterator[Piece]:
        """What no server holds, dealt to the workers that save; and the share of a server in this process."""
        self._settle()
        if self._part is not None:
            yield from self._rest(self._part)
        if self._streams:
            yield from self._streams.pieces()
        if self._remembered:
            yield from self._remembered.pieces()
        if self._inmate is not None:
            yield from self._inmate.state.pieces()

    def restore(self, step: Committed) -> None:
        """See ``Engine.restore``."""
        self.load_weights(step)
        if self._streams:
            self._streams.restore(step)
        if self._remembered:
            self._remembered.restore(step)
        if self._inmate is not None:
            self._inmate.state.restore(step)

    def close(self) -> None:
        """Let the servers finish."""
        self._settle()

    def _rest(self, part: int) -> Iterator[Piece]:
        """What no server holds of the weights, as far as it belongs to a part of the checkpoint."""
        trained = {name for name, p in self.model.named_parameters(remove_duplicate=False) if p.requires_grad}
        rest = [(name, tensor) for name, tensor in self.model.state_dict().items() if name not in trained]
        for index, (name, tensor) in enumerate(rest):
            if self._parts[index % len(self._parts)] == part:
                yield Piece(f"model/{name}", tuple(tensor.shape), (0,) * tensor.dim(), tensor)

    def _norm(self) -> float:
        with self._blaming_inmate():
            return self._servers.norm()

    def _settle(self) -> None:
        with self._blaming_inmate(), torch.no_grad():
            self._servers.wait()
        if self._inmate is not None:
            self._inmate.end()

    @contextmanager
    def _blaming_inmate(self) -> Iterator[None]:
        """Raise what the server in this process failed of, if it did, in place of the silence that followed."""
        try:
            yield
        except RuntimeError:
            if self._inmate is not None:
                self._inmate.end()
            raise
