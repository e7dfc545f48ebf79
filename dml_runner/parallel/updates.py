"""Updates: how ranks that hold the same part of a model sum its gradients along the data axis and update it.

Either each of them updates all of it (``Replicated``), or each updates its share and hands it to the others, so that the optimizer's
state is divided among them (``Sharded``: Rajbhandari et al. 2020, section 5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dml_runner.comm import ring
from dml_runner.comm.counter import all_reduce_bytes
from dml_runner.comm.links import Links
from dml_runner.optim.parts.step import advance, drop, materialise, state_of
from dml_runner.parallel.flat import batches
from dml_runner.parallel.shards import Segment, Shards, Span

Build = Callable[[Sequence[tuple[nn.Parameter, str]]], torch.optim.Optimizer]
"""The optimizer of some parameters, or flat parts of them, each with the name of the parameter it is of."""


@dataclass(frozen=True)
class Kept:
    """A tensor of the state that this rank could save.

    Attributes:
        parameter: name of the parameter that it is of.
        key: what the optimizer calls it; None: it is the parameter itself.
        tensor: of the shape of the parameter as this rank holds it, flat where ``span`` is, or one number for all of it.
        span: which elements of the flattened parameter these are; None: all, and other ranks of the data axis hold the same.
    """

    parameter: str
    key: str | None
    tensor: Tensor
    span: Span | None


class Update(Protocol):
    """One rank's side of the update of its part of the model."""

    def start(self, names: Sequence[str]) -> None:
        """Begin to sum these parameters' gradients over the data axis; their last backward is done."""

    def finish(self) -> None:
        """Return when all that was begun is summed."""

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The summed gradients that this rank updates by, each with its parameter's name."""

    def step(self, rate: float) -> None:
        """Update the parameters, so that all ranks of the data axis hold the same, and drop the gradients."""

    def kept(self) -> Iterator[Kept]:
        """Trained parameters and optimizer state."""

    def materialise(self) -> None:
        """Have the optimizer make its state, which changes no weight."""


class Replicated:
    """Every rank of the data axis updates all of its part.

    Args:
        parameters: those that are trained, by name.
        links: along the data axis; None: nobody else holds this part.
        bucket: elements that travel together at least, but for what is left.
        build: makes the optimizer.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], links: Links | None, bucket: int, build: Build) -> None:
        self._parameters, self._links, self._bucket = parameters, links, bucket
        self._optimizer = build([(parameter, name) for name, parameter in parameters.items()])
        self._works: list[dist.Work] = []

    def start(self, names: Sequence[str]) -> None:
        """See ``Update``."""
        if self._links is None:
            return
        found = [p for p in (self._parameters[name] for name in names) if p.grad is not None]
        for parameters in batches(found, self._bucket):
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            self._links.sent.add(all_reduce_bytes(flat.nbytes, self._links.size))
            work = dist.all_reduce(flat, group=self._links.group, async_op=True)
            assert work is not None
            self._works.append(work)
            for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = gradient.view_as(parameter)

    def finish(self) -> None:
        """See ``Update``."""
        works, self._works = self._works, []
        for work in works:
            work.wait()

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """See ``Update``."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                yield name, parameter.grad

    def step(self, rate: float) -> None:
        """See ``Update``."""
        advance(self._optimizer, rate)
        drop(self._parameters.values())

    def kept(self) -> Iterator[Kept]:
        """See ``Update``."""
        for name, parameter in self._parameters.items():
            yield Kept(name, None, parameter.detach(), None)
            for key, value in state_of(self._optimizer, parameter):
                yield Kept(name, key, value, None)

    def materialise(self) -> None:
        """See ``Update``."""
        materialise(self._optimizer, self._parameters.values())


class Sharded:
    """Each rank of the data axis updates its share of every bucket, and keeps the optimizer's state of that share alone.

    Gradients are scattered where they are summed, and weights gathered after the update: together the bytes of one all-reduce.

    Args: as of ``Replicated``; there are others along the data axis.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], links: Links, bucket: int, build: Build) -> None:
        self._names, self._parameters, self._links = list(parameters), list(parameters.values()), links
        shards = Shards([p.numel() for p in self._parameters], links.size, max(bucket, 1))
        self._buckets = [(span.start, shards.segments(span)) for span in shards.buckets]
        self._parts = [shards.segments(span) for span in shards.share(links.rank)]
        self._segments = [segment for part in self._parts for segment in part]
        self._mine = [nn.Parameter(self._weights(segment)) for segment in self._segments]
        self._optimizer = build([(p, self._names[s.parameter]) for p, s in zip(self._mine, self._segments, strict=True)])

    def start(self, names: Sequence[str]) -> None:
        """See ``Update``: buckets do not end where stages do, so all begin in ``finish``."""

    def finish(self) -> None:
        """See ``Update``."""
        mine = iter(self._mine)
        for (start, segments), part in zip(self._buckets, self._parts, strict=True):
            flat = torch.cat([self._gradient(segment) for segment in segments])
            ring.reduce_scatter(self._links, flat)
            for segment in part:
                trained = self._parameters[segment.parameter].grad is not None
                next(mine).grad = flat[segment.row.start - start : segment.row.stop - start] if trained else None

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """See ``Update``."""
        for parameter, segment in zip(self._mine, self._segments, strict=True):
            if parameter.grad is not None:
                yield self._names[segment.parameter], parameter.grad

    def step(self, rate: float) -> None:
        """See ``Update``."""
        advance(self._optimizer, rate)
        drop([*self._mine, *self._parameters])
        for start, segments in self._buckets:
            flat = torch.cat([self._weights(segment) for segment in segments])
            ring.all_gather(self._links, flat)
            for segment in segments:
                self._weights(segment).copy_(flat[segment.row.start - start : segment.row.stop - start])

    def kept(self) -> Iterator[Kept]:
        """See ``Update``."""
        for parameter, segment in zip(self._mine, self._segments, strict=True):
            yield Kept(self._names[segment.parameter], None, parameter.detach(), segment.inside)
            for key, value in state_of(self._optimizer, parameter):
                yield Kept(self._names[segment.parameter], key, value, segment.inside)

    def materialise(self) -> None:
        """See ``Update``."""
        materialise(self._optimizer, self._mine)

    def _weights(self, segment: Segment) -> Tensor:
        """A segment of the model's own weights, as a view."""
        whole = self._parameters[segment.parameter].detach().view(-1)
        return whole[segment.inside.start : segment.inside.stop]

    def _gradient(self, segment: Segment) -> Tensor:
        gradient = self._parameters[segment.parameter].grad
        if gradient is None:
            return torch.zeros_like(self._weights(segment))
        return gradient.flatten()[segment.inside.start : segment.inside.stop]
