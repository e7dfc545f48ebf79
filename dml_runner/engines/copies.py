"""What each rank keeps of a step, so that the step can be saved after some rank's death: its own part, and that of others.

Parts are numbered as the ranks that save are (``Layout.saver``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from dml_runner.checkpoint.dtypes import CODES, DTYPES
from dml_runner.checkpoint.pieces import Piece
from dml_runner.parallel.replica import Copy, Replica, places, unpack


class Copies(Protocol):
    """A rank's copies of the last two steps that were copied."""

    def settle(self) -> None:
        """Return when the last copies are where they belong.

        Raises:
            RuntimeError: a rank is gone.
        """

    def copy(self, step: int) -> None:
        """Copy what there is after ``step``; all ranks have settled."""

    def held(self) -> Iterator[tuple[int, int]]:
        """(number of a part, step) of all that this rank could save."""

    def pieces(self, part: int, step: int) -> Iterator[Piece]:
        """Part ``part`` of ``step``, which is among those ``held``."""


class ServerCopies:
    """A server's share, copied to the next server; and that of the server before.

    Args:
        replica: passes copies on.
        state: gives the present pieces.
        own: number of this server's part.
        before: number of the part of the server before.
    """

    def __init__(self, replica: Replica, state: Callable[[], Iterator[Piece]], own: int, before: int) -> None:
        self._replica, self._state, self._own, self._before = replica, state, own, before

    def settle(self) -> None:
        """See ``Copies``."""
        self._replica.settle()

    def copy(self, step: int) -> None:
        """See ``Copies``."""
        pieces = list(self._state())
        tensors = [piece.tensor.detach().contiguous() for piece in pieces]
        self._replica.copy(step, tensors, _words(pieces, tensors))

    def held(self) -> Iterator[tuple[int, int]]:
        """See ``Copies``."""
        for part, copies in ((self._own, self._replica.own), (self._before, self._replica.other)):
            yield from ((part, step) for step in list(copies))

    def pieces(self, part: int, step: int) -> Iterator[Piece]:
        """See ``Copies``."""
        return _pieces((self._replica.own if part == self._own else self._replica.other)[step])

    def close(self) -> None:
        """See ``Replica.close``."""
        self._replica.close()


class WorkerCopies:
    """What workers save: the same on all of them, where buffers are copied and what is not trained never changes; and a worker's own.

    Args:
        rest: gives the present pieces of a part.
        buffers: names of the pieces that change.
        parts: numbers of all workers' parts.
        part: that of this worker, if it has one.
        own: gives what this worker alone has, and adds to its part; lost with it.
    """

    def __init__(
        self,
        rest: Callable[[int], Iterator[Piece]],
        buffers: frozenset[str],
        parts: Sequence[int],
        part: int | None,
        own: Callable[[], Iterator[Piece]],
    ) -> None:
        self._rest, self._buffers, self._parts, self._part, self._own = rest, buffers, parts, part, own
        self._kept: dict[int, dict[int, list[Piece]]] = {}

    def settle(self) -> None:
        """See ``Copies``: nothing is on its way."""

    def copy(self, step: int) -> None:
        """See ``Copies``."""
        self._kept = {older: self._kept[older] for older in sorted(self._kept)[-1:]}
        found = {part: [_cloned(piece) if piece.name in self._buffers else piece for piece in self._rest(part)] for part in self._parts}
        if self._part is not None:
            found[self._part] += [_cloned(piece) for piece in self._own()]
        self._kept[step] = found

    def held(self) -> Iterator[tuple[int, int]]:
        """See ``Copies``."""
        return ((part, step) for step in list(self._kept) for part in self._parts)

    def pieces(self, part: int, step: int) -> Iterator[Piece]:
        """See ``Copies``."""
        return iter(self._kept[step][part])


def _cloned(piece: Piece) -> Piece:
    return Piece(piece.name, piece.shape, piece.offsets, piece.tensor.detach().clone())


def _words(pieces: Sequence[Piece], tensors: Sequence[Tensor]) -> str:
    begins, _ = places(tensors)
    return json.dumps(
        [
            [piece.name, piece.shape, piece.offsets, CODES[piece.tensor.dtype], tuple(piece.tensor.shape), at]
            for piece, at in zip(pieces, begins, strict=True)
        ]
    )


def _pieces(copy: Copy) -> Iterator[Piece]:
    for name, shape, offsets, code, size, at in json.loads(copy.words):
        yield Piece(name, tuple(shape), tuple(offsets), unpack(copy.flat, at, DTYPES[code], size))
