"""Shards: one flat row of all trained weights, cut into buckets, and each bucket into one part for every server.

The row begins with the parameters whose gradients are ready first, and a bucket may begin and end anywhere, so that servers hold
equal shares whatever the sizes of the tensors, and every bucket keeps all of them busy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Span:
    """Elements ``start`` to ``stop`` of the row."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


@dataclass(frozen=True)
class Segment:
    """What a span has of one parameter.

    Attributes:
        parameter: its place among the parameters.
        inside: its elements within the flattened parameter.
        row: the same elements within the row.
    """

    parameter: int
    inside: Span
    row: Span


class Shards:
    """The division of a row of parameters over servers.

    Args:
        sizes: elements of each parameter, in the order of the row.
        servers: how many share each bucket.
        bucket: elements of a bucket; the last one may be shorter.
    """

    def __init__(self, sizes: Sequence[int], servers: int, bucket: int) -> None:
        self._starts = [0, *accumulate(sizes)]
        self.servers = servers
        self.size = self._starts[-1]
        self.buckets = [Span(start, min(start + bucket, self.size)) for start in range(0, self.size, bucket)]

    def part(self, bucket: int, server: int) -> Span:
        """What of a bucket a server holds."""
        whole = self.buckets[bucket]
        return Span(*(whole.start + whole.size * edge // self.servers for edge in (server, server + 1)))

    def share(self, server: int) -> list[Span]:
        """What a server holds, a span of each bucket."""
        return [self.part(bucket, server) for bucket in range(len(self.buckets))]

    def segments(self, span: Span) -> list[Segment]:
        """The parameters in a span, in order."""
        found, at = [], span.start
        while at < span.stop:
            parameter = bisect_right(self._starts, at) - 1
            stop = min(span.stop, self._starts[parameter + 1])
            begins = self._starts[parameter]
            found.append(Segment(parameter, Span(at - begins, stop - begins), Span(at, stop)))
            at = stop
        return found

    def buckets_of(self, parameter: int) -> range:
        """The buckets that hold some of a parameter."""
        span = Span(self._starts[parameter], self._starts[parameter + 1])
        if not span.size:
            return range(0)
        width = self.buckets[0].size
        return range(span.start // width, (span.stop - 1) // width + 1)
