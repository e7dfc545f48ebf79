"""The state of a rank that holds a part of a model, in the words of checkpoints: boxes of named tensors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dml_runner.checkpoint.pieces import Piece, Region, Shape, boxes
from dml_runner.checkpoint.read import Committed
from dml_runner.parallel.held import Box, Held
from dml_runner.parallel.shards import Span


def pieces(name: str, held: Held, tensor: Tensor, span: Span | None) -> Iterator[Piece]:
    """What a rank saves of one tensor.

    Args:
        name: its canonical name.
        held: what of the whole the rank holds.
        tensor: of that shape; flat and of some of its elements where there is a ``span``; or one number for the whole tensor, which the
            rank saves that holds the first element.
        span: those elements.
    """
    if tensor.dim() == 0:
        begins = any(not any(box.offsets) for box in held.boxes)
        if begins and (span is None or span.start == 0):
            yield Piece(name, (), (), tensor)
        return
    for place, part in _parts(held, tensor, span):
        yield Piece(name, held.shape, place.offsets, part)


def fill(step: Committed, name: str, held: Held, tensor: Tensor, span: Span | None) -> None:
    """Take what ``pieces`` would give from a verified checkpoint, whatever layout wrote it; only those bytes are read."""
    if tensor.dim() == 0:
        tensor.copy_(step.read(name))
        return
    for place, part in _parts(held, tensor, span):
        part.copy_(step.read(name, place.offsets, place.shape))


def _parts(held: Held, tensor: Tensor, span: Span | None) -> Iterator[tuple[Region, Tensor]]:
    """Each part of ``tensor`` that is a box of the whole tensor: where it stands there, and a view of it."""
    if span is None:
        yield from ((Region(box.offsets, box.shape), box.of_held(tensor)) for box in held.boxes)
        return
    start = 0
    for region in boxes(_shape(held), span.start, span.stop):
        flat = tensor[start : start + region.size].view(region.shape)
        start += region.size
        for box in held.boxes:
            common = region.common(Region(box.places, box.shape))
            if common is not None:
                yield Region(_moved(common.offsets, box), common.shape), flat[common.within(region)]


def _moved(offsets: Shape, box: Box) -> Shape:
    return tuple(at - place + start for at, place, start in zip(offsets, box.places, box.offsets, strict=True))


def _shape(held: Held) -> Shape:
    """Shape of the tensor that is held."""
    reach = [[place + length for place, length in zip(box.places, box.shape, strict=True)] for box in held.boxes]
    return tuple(max(ends) for ends in zip(*reach, strict=True))
