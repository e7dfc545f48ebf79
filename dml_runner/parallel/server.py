"""Server: one server's share of the weights and of the optimizer's state, in host memory (Li et al. 2014, OSDI)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dml_runner.comm.pairs import Pair, Pending
from dml_runner.comm.wires.codecs import Codec
from dml_runner.optim.parts.clip import clip, diverged, squares
from dml_runner.optim.parts.step import advance
from dml_runner.parallel.shards import Segment, Shards

Optimize = Callable[[Sequence[tuple[nn.Parameter, Segment]]], torch.optim.Optimizer]
"""The optimizer of some segments, which are flat parameters of their own."""

AHEAD = 4
"""Parts that workers may send before the server has updated an earlier one. A worker whose messages happen to fare better on the
network would otherwise push all it has while every part waits for the slowest, and the way back stands idle. Where nothing needs
a whole gradient, parts that far apart share the room it arrives in, which then stays in the processor's caches."""


@dataclass(frozen=True)
class Part:
    """What a server holds of one bucket.

    Attributes:
        bucket: its number.
        weights: the part, flat.
        gradient: of the same shape, where gradients are summed.
        segments: views of ``weights`` that the optimizer takes for parameters, each with what it is of the model's.
        optimizer: over ``segments``.
    """

    bucket: int
    weights: Tensor
    gradient: Tensor
    segments: Sequence[tuple[nn.Parameter, Segment]]
    optimizer: torch.optim.Optimizer

    def update(self, rate: float) -> None:
        """One step of the optimizer with what ``gradient`` holds."""
        advance(self.optimizer, rate)

    def materialise(self) -> None:
        """Have the optimizer make its state, which changes no weight."""
        self.gradient.zero_()
        self.update(0.0)


class Share:
    """A server's parts of all buckets.

    Args:
        shards: how the row of weights is divided.
        server: whose share this is.
        row: the whole row of starting weights; its part is copied.
        optimize: makes the optimizer of a part.
        rooms: parts so far apart share the room for their gradients; None: each has its own.
    """

    def __init__(self, shards: Shards, server: int, row: Callable[[Segment], Tensor], optimize: Optimize, rooms: int | None = None) -> None:
        self.buckets, self.rooms = len(shards.buckets), rooms
        spans = [(bucket, span) for bucket, span in enumerate(shards.share(server)) if span.size]
        gradients = _zeros([span.size for _, span in spans], rooms)
        self.parts = [
            _part(bucket, shards.segments(span), gradient, row, optimize) for (bucket, span), gradient in zip(spans, gradients, strict=True)
        ]

    @property
    def segments(self) -> Iterator[tuple[nn.Parameter, Segment, torch.optim.Optimizer]]:
        """Every segment with the optimizer that updates it."""
        for part in self.parts:
            for parameter, segment in part.segments:
                yield parameter, segment, part.optimizer


def _zeros(sizes: Sequence[int], rooms: int | None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Flat tensors of such sizes, those that stand ``rooms`` apart in the same memory; None: each in its own."""
    if rooms is None:
        return [torch.zeros(size, dtype=dtype) for size in sizes]
    shared = [torch.zeros(max(sizes[at::rooms]), dtype=dtype) for at in range(min(rooms, len(sizes)))]
    return [shared[at % rooms][:size] for at, size in enumerate(sizes)]


def _part(bucket: int, segments: Sequence[Segment], gradient: Tensor, row: Callable[[Segment], Tensor], optimize: Optimize) -> Part:
    weights = torch.empty(gradient.numel())
    found, at = [], 0
    for segment in segments:
        inside = slice(at, at + segment.row.size)
        weights[inside] = row(segment)
        parameter = nn.Parameter(weights[inside])
        parameter.grad = gradient[inside]
        found.append((parameter, segment))
        at = inside.stop
    return Part(bucket, weights, gradient, found, optimize(found))


class Server:
    """Serves steps that all workers take together (bulk synchronous, Valiant 1990): a bucket is updated once all have pushed it.

    Gradients are summed in the order of the workers, whoever came first, so that a step has one result.

    Args:
        share: what this server holds; with ``rooms`` of AHEAD at least, or None, and None where there is a ``clip_norm``.
        pairs: one for each worker.
        clip_norm: longest gradient; None: buckets need not wait for the norm, which is only known when all have come.
        total: the sum of a number over all servers; called by all together, once a step, where there is a ``clip_norm``.
        codec: reads what gradients travelled as; None: as they are.
    """

    def __init__(
        self,
        share: Share,
        pairs: Sequence[Pair],
        clip_norm: float | None,
        total: Callable[[float], float],
        codec: Codec | None,
    ) -> None:
        self.share = share
        self._pairs, self._clip_norm, self._total, self._codec = pairs, clip_norm, total, codec
        assert clip_norm is None or share.rooms is None, "a gradient that is clipped is needed as a whole"
        self._arrivals = list(zip(*map(self._rows, range(len(pairs))), strict=True))

    def step(self, rate: float) -> float:
        """Serve one step at learning rate ``rate``; returns the squared norm of this share's gradient.

        Raises:
            Diverged: a gradient is not finite; what it would have changed is as it was.
            RuntimeError: a worker is gone.
        """
        receiving = deque(self._receive(number) for number in range(min(AHEAD, len(self.share.parts))))
        total, sending = 0.0, []
        for number, (part, arrivals) in enumerate(zip(self.share.parts, self._arrivals, strict=True)):
            total += self._sum(part, arrivals, receiving.popleft())
            if self._clip_norm is None:
                _refuse_infinite(total)
                part.update(rate)
            if number + AHEAD < len(self.share.parts):
                receiving.append(self._receive(number + AHEAD))
            if self._clip_norm is None:
                sending += self._answer(part)
        if self._clip_norm is not None:
            self._clip(self._total(total))
            for part in self.share.parts:
                part.update(rate)
                sending += self._answer(part)
        norm = torch.tensor(total, dtype=torch.float64)
        sending += [pair.send(norm, self.share.buckets) for pair in self._pairs]
        for transfer in sending:
            transfer.wait()
        return total

    def _rows(self, worker: int) -> list[Tensor]:
        """What a worker's pushes fill, part by part."""
        if self._codec is None and worker == 0:
            return [part.gradient for part in self.share.parts]
        sizes = [part.weights.numel() for part in self.share.parts]
        if self._codec is None:
            return _zeros(sizes, AHEAD)
        return _zeros([self._codec.size(size) for size in sizes], AHEAD, torch.uint8)

    def _receive(self, number: int) -> list[Pending]:
        """Let all workers send a part."""
        part, arrivals = self.share.parts[number], self._arrivals[number]
        return [pair.receive(arrival, part.bucket) for pair, arrival in zip(self._pairs, arrivals, strict=True)]

    def _sum(self, part: Part, arrivals: Sequence[Tensor], pending: Sequence[Pending]) -> float:
        for number, (arrival, transfer) in enumerate(zip(arrivals, pending, strict=True)):
            transfer.wait()
            gradient = arrival if self._codec is None else self._codec.decode(arrival, part.gradient.numel())
            if number:
                part.gradient.add_(gradient)
            elif gradient is not part.gradient:
                part.gradient.copy_(gradient)
        return squares(part.gradient)

    def _clip(self, squares: float) -> None:
        assert self._clip_norm is not None
        _refuse_infinite(squares)
        if self.share.parts:  # buckets of few elements leave some servers without one
            clip([part.gradient for part in self.share.parts], math.sqrt(squares), self._clip_norm)

    def _answer(self, part: Part) -> list[Pending]:
        return [pair.send(part.weights, part.bucket) for pair in self._pairs]


def arrival_of(values: int, codec: Codec | None) -> Tensor:
    """What a push of so many values fills."""
    return torch.empty(values) if codec is None else torch.empty(codec.size(values), dtype=torch.uint8)


def _refuse_infinite(squares: float) -> None:
    if not math.isfinite(squares):
        raise diverged(squares, "the last saved step is as it was")
