"""The engine of a server: it executes its side of each step, and has nothing to evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed
from dml_runner.engines.apart import Apart
from dml_runner.engines.base import StepReport, Weigh
from dml_runner.engines.copies import ServerCopies
from dml_runner.engines.part_state import fill, pieces
from dml_runner.models.base import Batch
from dml_runner.optim.parts.step import state_of
from dml_runner.parallel.asynchronous_server import AsynchronousServer
from dml_runner.parallel.held import all_of
from dml_runner.parallel.server import Server, Share
from dml_runner.parallel.shards import Segment


@dataclass(frozen=True)
class Served:
    """A parameter that servers hold.

    Attributes:
        names: all that the model knows it by; the first is its own.
        shape: of the whole tensor.
        distance: from the model's head, in blocks.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    distance: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


class ShareState:
    """A server's share, in the words of checkpoints: boxes of named tensors."""

    def __init__(self, share: Share, parameters: Sequence[Served]) -> None:
        self._share, self._parameters = share, parameters

    def pieces(self) -> Iterator[Piece]:
        """Weights and optimizer state of the share."""
        for names, served, segment, flat in self._tensors():
            for name in names:
                yield from pieces(name, all_of(served.shape), flat, segment.inside)

    def restore(self, step: Committed) -> None:
        """Take both from a verified checkpoint, whatever layout wrote it."""
        for part in self._share.parts:
            part.materialise()
        for names, served, segment, flat in self._tensors():
            fill(step, names[0], all_of(served.shape), flat, segment.inside)

    def _tensors(self) -> Iterator[tuple[Sequence[str], Served, Segment, Tensor]]:
        """Every flat tensor of the share with its canonical names, its own first, and what it is of which parameter."""
        for parameter, segment, optimizer in self._share.segments:
            served = self._parameters[segment.parameter]
            yield [f"model/{name}" for name in served.names], served, segment, parameter.detach()
            for key, value in state_of(optimizer, parameter):
                yield [f"optimizer/{key}/{served.names[0]}"], served, segment, value


class Serving(Apart):
    """A rank that is a server and nothing else.

    Attributes:
        copies: of its share and of another server's; None: there are no replicas.
    """

    def __init__(self, state: ShareState, model: nn.Module, copies: ServerCopies | None) -> None:
        """``model`` is the job's: it tells what there is."""
        super().__init__(model)
        self.copies = copies
        self._state = state

    def state(self) -> Iterator[Piece]:
        """The share."""
        return self._state.pieces()

    def restore(self, step: Committed) -> None:
        """See ``Engine.restore``."""
        self._state.restore(step)

    def close(self) -> None:
        """Let the servers beside it go."""
        if self.copies is not None:
            self.copies.close()


class LockstepServer(Serving):
    """A server that takes each step together with all ranks."""

    def __init__(self, server: Server, state: ShareState, model: nn.Module, copies: ServerCopies | None = None) -> None:
        super().__init__(state, model, copies)
        self._server = server

    def step(self, number: int, batches: Sequence[Batch], weight: Weigh, rate: float) -> StepReport:
        """Serve update ``number``; there are no batches."""
        weight()
        norm = self._server.step(rate) ** 0.5
        return StepReport(torch.zeros(()), lambda: norm, 0.0, 0.0, 0.0)


class FreeServer(Serving):
    """A server whose workers come when they like."""

    def __init__(self, server: AsynchronousServer, state: ShareState, model: nn.Module, copies: ServerCopies | None = None) -> None:
        super().__init__(state, model, copies)
        self._server = server

    def step(self, number: int, batches: Sequence[Batch], weight: Weigh, rate: float) -> NoReturn:
        """Never asked: pushes are served in threads."""
        raise AssertionError("this server takes no steps")

    def restore(self, step: Committed) -> None:
        """See ``Engine.restore``."""
        super().restore(step)
        self._server.begin_after(step.step)

    @property
    def clock_gap(self) -> int:
        """See ``AsynchronousServer.clock_gap``."""
        return self._server.clock_gap

    def check(self) -> None:
        """See ``AsynchronousServer.check``."""
        self._server.check()

    def close(self) -> None:
        """Wait until the workers have left."""
        self._server.close()
        super().close()
