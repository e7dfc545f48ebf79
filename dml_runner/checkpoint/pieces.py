"""Piece: a slice of a named tensor, and the arithmetic of slices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """The part of one tensor that one rank writes.

    Attributes:
        name: canonical name, such as ``model/blocks.0.attn.weight`` or ``optimizer/exp_avg/blocks.0.attn.weight``.
        shape: of the whole tensor.
        offsets: where the slice starts in the whole tensor, one number a dimension.
        tensor: the slice itself, on any device.
    """

    name: str
    shape: Shape
    offsets: Shape
    tensor: Tensor


@dataclass(frozen=True)
class Region:
    """A box inside a tensor: where it starts and how far it reaches, one number a dimension."""

    offsets: Shape
    shape: Shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def fits(self, whole: Shape) -> bool:
        """Whether the box has the dimensions of ``whole`` and lies inside it."""
        if not len(whole) == len(self.shape) == len(self.offsets):
            return False
        return all(o >= 0 and s >= 0 and o + s <= w for o, s, w in zip(self.offsets, self.shape, whole, strict=True))

    def common(self, other: Region) -> Region | None:
        """The elements that both boxes hold, or None if there is none."""
        starts = tuple(max(a, b) for a, b in zip(self.offsets, other.offsets, strict=True))
        ends = tuple(min(a + m, b + n) for a, m, b, n in zip(self.offsets, self.shape, other.offsets, other.shape, strict=True))
        shape = tuple(end - start for start, end in zip(starts, ends, strict=True))
        return Region(starts, shape) if all(s > 0 for s in shape) else None

    def within(self, other: Region) -> tuple[slice, ...]:
        """Slices that select this box in a tensor that holds ``other``."""
        return tuple(slice(a - b, a - b + n) for a, b, n in zip(self.offsets, other.offsets, self.shape, strict=True))


def boxes(shape: Shape, start: int, stop: int) -> Iterator[Region]:
    """Elements ``start`` to ``stop`` of a flattened tensor of ``shape``, in order, as boxes inside it."""
    if start >= stop:
        return
    if not shape:
        yield Region((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # both ends lie inside one row
        yield from _within_row(first - 1, shape, start, stop)
        return
    yield from _within_row(first - 1, shape, start, first * row)
    if last > first:
        yield Region((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    yield from _within_row(last, shape, last * row, stop)


def _within_row(index: int, shape: Shape, start: int, stop: int) -> Iterator[Region]:
    begins = index * math.prod(shape[1:])
    for box in boxes(shape[1:], start - begins, stop - begins):
        yield Region((index, *box.offsets), (1, *box.shape))


def overlap(regions: list[Region]) -> bool:
    """Whether two of the boxes share an element."""
    ordered = sorted((r for r in regions if r.size), key=lambda r: r.offsets)
    for index, first in enumerate(ordered):
        for second in ordered[index + 1 :]:
            if first.shape and second.offsets[0] >= first.offsets[0] + first.shape[0]:
                break
            if first.common(second) is not None:
                return True
    return False
