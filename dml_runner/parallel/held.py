"""Held: which part of a parameter a rank holds, where a layout divides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """A part of a whole tensor that stands together in the tensor that is held.

    Attributes:
        offsets: where it begins in the whole tensor, one number a dimension.
        places: where it begins in the held tensor.
        shape: how far it reaches.
    """

    offsets: Shape
    places: Shape
    shape: Shape

    def of_whole(self, whole: Tensor) -> Tensor:
        """The part, as a view of the whole tensor."""
        return whole[tuple(slice(start, start + length) for start, length in zip(self.offsets, self.shape, strict=True))]

    def of_held(self, held: Tensor) -> Tensor:
        """The part, as a view of the held tensor."""
        return held[tuple(slice(start, start + length) for start, length in zip(self.places, self.shape, strict=True))]


@dataclass(frozen=True)
class Held:
    """What a rank holds of one parameter.

    Attributes:
        shape: of the whole parameter.
        boxes: the parts it holds; together they fill the held tensor.
    """

    shape: Shape
    boxes: tuple[Box, ...]

    def fill(self, held: Tensor, whole: Tensor) -> None:
        """Copy into ``held`` its part of the ``whole`` tensor."""
        for box in self.boxes:
            box.of_held(held).copy_(box.of_whole(whole))


def all_of(shape: Sequence[int]) -> Held:
    """A tensor of ``shape``, held whole."""
    start = (0,) * len(shape)
    return Held(tuple(shape), (Box(start, start, tuple(shape)),))


def rows(shape: Sequence[int], blocks: Sequence[tuple[int, int]], dimension: int = 0) -> Held:
    """Some rows of a tensor of ``shape``, put one below the other.

    Args:
        shape: of the whole tensor.
        blocks: (first row, number of rows) of each run of rows that stands together.
        dimension: along which rows are counted.
    """
    boxes, place = [], 0
    for first, count in blocks:
        offsets, places, reach = [0] * len(shape), [0] * len(shape), list(shape)
        offsets[dimension], places[dimension], reach[dimension] = first, place, count
        boxes.append(Box(tuple(offsets), tuple(places), tuple(reach)))
        place += count
    return Held(tuple(shape), tuple(boxes))
