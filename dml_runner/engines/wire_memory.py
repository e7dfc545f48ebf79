"""What a wire remembers of the gradients it rounded, in the words of checkpoints: each rank has its own, and another layout has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed

LAYOUT = "wire/layout"
"""Name of the numbers by which a layout is known again."""


class Remembers(Protocol):
    """Tensors by name that outlive a step."""

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """All of them."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take these instead."""


class Remembered:
    """The wire memory of one rank.

    Args:
        memory: what remembers.
        rank: of this process.
        layout: numbers that differ wherever what is remembered would mean something else: ranks, and the sizes of buckets.
    """

    def __init__(self, memory: Remembers, rank: int, layout: Sequence[int]) -> None:
        self._memory, self._rank = memory, rank
        self._layout = torch.tensor(list(layout), dtype=torch.int64)

    def pieces(self) -> Iterator[Piece]:
        """This rank's tensors, and from rank 0 the numbers of the layout."""
        found = False
        for name, tensor in self._memory.state():
            found = True
            yield Piece(self._name(name), tuple(tensor.shape), (0,) * tensor.dim(), tensor)
        if found and self._rank == 0:
            yield Piece(LAYOUT, tuple(self._layout.shape), (0,), self._layout)

    def restore(self, step: Committed) -> None:
        """Take them from a checkpoint of this layout; from any other, the wire starts anew."""
        if LAYOUT not in step.tensors or not torch.equal(step.read(LAYOUT), self._layout):
            return
        prefix = self._name("")
        self._memory.restore({name.removeprefix(prefix): step.read(name) for name in step.tensors if name.startswith(prefix)})

    def _name(self, name: str) -> str:
        return f"wire/rank-{self._rank}/{name}"
