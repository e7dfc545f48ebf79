"""Push and pull: a worker's side of a parameter server (Li et al. 2014). Gradients leave during backward, weights come during forward."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from dml_runner.comm.pairs import Pair, Pending
from dml_runner.optim.parts.clip import squares
from dml_runner.parallel.flat import FlatWeights
from dml_runner.parallel.shards import Shards, Span

Encode = Callable[[int, Tensor], Tensor]
"""From (key of a span, gradient in host memory) to what travels."""


AHEAD = 8
"""Buckets a worker may have pushed beyond the last one it has whole. The servers would otherwise drift apart, each by what the network
happens to give it, and those done first would stand idle at the end of a step."""


def as_is(_: int, gradient: Tensor) -> Tensor:
    """Gradients travel as they are."""
    return gradient


class PushPull:
    """Pushes each bucket of gradients once it is complete, and pulls its new weights into the module.

    A pulled bucket overwrites weights that this step's backward needs no longer; the next forward waits, before each block, for the
    buckets the block has a part in.

    Args:
        module: holds ``parameters``; its forward is what waits.
        blocks: modules within it that are run one after the other, each with parameters that nobody else reads.
        parameters: those that are trained, in the order of the row.
        shards: how the row is divided.
        pairs: one for each server.
        encode: what gradients travel as.
        ahead: a push waits for the pull of so many buckets before it; None: for none, as where servers answer when all has come.

    Attributes:
        module: the same.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Iterable[nn.Module],
        parameters: Sequence[nn.Parameter],
        shards: Shards,
        pairs: Sequence[Pair],
        encode: Encode = as_is,
        ahead: int | None = None,
    ) -> None:
        self.module = module
        self._ahead, self._unbroken = ahead, 0
        self._shards, self._pairs, self._encode = shards, pairs, encode
        self._row = FlatWeights(parameters)
        self._outgoing, self._incoming = self._row.host(self._row.gradients), self._row.host(self._row.weights)
        self._quiet = False
        self._waited_s = 0.0
        self._pulls: dict[int, list[Pending]] = {}
        self._pushes: list[Pending] = []
        self._norms: list[tuple[Pending, Tensor]] = []
        self._norm = 0.0
        self._sharing = self._count_parameters(len(parameters))
        self._open = list(self._sharing)
        for number, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._ready, shards.buckets_of(number)))
        self._wait_in_forward(blocks, {id(parameter): number for number, parameter in enumerate(parameters)})

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Inside, backward adds to this rank's gradients and pushes nothing."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def finish(self) -> None:
        """Push what no backward touched; called after the last backward of a step."""
        for bucket, missing in enumerate(self._open):
            if missing:
                self._open[bucket] = 0
                self._push(bucket)
        self._open, self._unbroken = list(self._sharing), 0
        self.norm()  # of the step before, which has come long since
        for pair in self._pairs:
            part = torch.empty((), dtype=torch.float64)
            self._norms.append((pair.receive(part, len(self._shards.buckets)), part))

    def pull(self) -> None:
        """Begin to fetch all weights; the servers know of it."""
        for bucket in range(len(self._shards.buckets)):
            self._receive(bucket)

    def norm(self) -> float:
        """Norm of the whole gradient of the last step that was finished; waits for it."""
        if self._norms:
            for pending, _ in self._norms:
                pending.wait()
            self._norm = math.sqrt(math.fsum(float(part) for _, part in self._norms))
            self._norms.clear()
        return self._norm

    def wait(self) -> None:
        """Return when the module has all weights of the last step that was finished."""
        self._wait_for(sorted(self._pulls))
        self.norm()

    def take_waited(self) -> float:
        """Seconds spent waiting since the last call."""
        taken, self._waited_s = self._waited_s, 0.0
        return taken

    def scale_gradients(self, factor: float) -> None:
        """Multiply this rank's whole gradient, before anything of it is pushed."""
        self._row.gradients.mul_(factor)

    def gradient_norm(self) -> float:
        """Norm of this rank's own gradient."""
        gradients = self._row.gradients
        return math.sqrt(squares(gradients)) if gradients.device.type == "cpu" else float(torch.linalg.vector_norm(gradients))

    def _count_parameters(self, parameters: int) -> list[int]:
        counts = [0] * len(self._shards.buckets)
        for number in range(parameters):
            for bucket in self._shards.buckets_of(number):
                counts[bucket] += 1
        return counts

    def _ready(self, buckets: range, _: Tensor) -> None:
        if self._quiet:
            return
        for bucket in buckets:
            self._open[bucket] -= 1
            if self._open[bucket] == 0:
                self._push(bucket)

    def _hold_back(self, bucket: int) -> None:
        """Wait until the push of ``bucket`` is not too far ahead, unless the servers still lack one before what it would wait for."""
        assert self._ahead is not None
        while self._unbroken < len(self._open) and not self._open[self._unbroken]:
            self._unbroken += 1
        awaited = bucket - self._ahead
        if 0 <= awaited < self._unbroken and awaited in self._pulls:
            started = time.perf_counter()
            for pending in self._pulls[awaited]:
                pending.wait()
            self._pulls[awaited] = []
            self._waited_s += time.perf_counter() - started

    def _push(self, bucket: int) -> None:
        if self._ahead is not None:
            self._hold_back(bucket)
        whole = _slice(self._shards.buckets[bucket])
        if self._outgoing is not self._row.gradients:
            self._outgoing[whole].copy_(self._row.gradients[whole])
        self._receive(bucket)
        for server, pair in enumerate(self._pairs):
            span = self._shards.part(bucket, server)
            if span.size:
                key = bucket * len(self._pairs) + server
                self._pushes.append(pair.send(self._encode(key, self._outgoing[_slice(span)]), bucket))

    def _receive(self, bucket: int) -> None:
        for server, pair in enumerate(self._pairs):
            span = self._shards.part(bucket, server)
            if span.size:
                self._pulls.setdefault(bucket, []).append(pair.receive(self._incoming[_slice(span)], bucket))

    def _wait_in_forward(self, blocks: Iterable[nn.Module], numbers: dict[int, int]) -> None:
        inside: set[int] = set()
        for block in blocks:
            found = {numbers[id(p)] for p in block.parameters() if id(p) in numbers}
            self._wait_before(block, found)
            inside |= found
        self._wait_before(self.module, set(numbers.values()) - inside)
        self.module.register_forward_hook(lambda *_: self._wait_for(sorted(self._pulls)))

    def _wait_before(self, module: nn.Module, parameters: Iterable[int]) -> None:
        buckets = sorted({bucket for number in parameters for bucket in self._shards.buckets_of(number)})
        module.register_forward_pre_hook(lambda *_: self._wait_for(buckets))

    def _wait_for(self, buckets: Iterable[int]) -> None:
        if not self._pulls:
            return
        started = time.perf_counter()
        for bucket in buckets:
            if bucket not in self._pulls:
                continue
            for pending in self._pulls.pop(bucket):
                pending.wait()
            whole = _slice(self._shards.buckets[bucket])
            if self._incoming is not self._row.weights:
                self._row.weights[whole].copy_(self._incoming[whole])
            self._row.gradients[whole].zero_()
        if not self._pulls:
            for pending in self._pushes:
                pending.wait()
            self._pushes.clear()
        self._waited_s += time.perf_counter() - started


def _slice(span: Span) -> slice:
    return slice(span.start, span.stop)
