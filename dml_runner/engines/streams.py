"""Streams: what a recurrent model hands from one step to the next, for each place of the global batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed
from dml_runner.layout import Batch as BatchShape

NAME = "streams/state"


class Streams:
    """The states of one rank's streams, a tensor for each of its micro-batches.

    Args:
        shape: of one stream's state.
        batch: how the global batch is divided.
        data_rank: whose streams these are.
        device: where they live.
    """

    def __init__(self, shape: tuple[int, ...], batch: BatchShape, data_rank: int, device: torch.device) -> None:
        self._whole = (batch.global_batch, *shape)
        self._starts = [(a * batch.data_ranks + data_rank) * batch.micro_batch for a in range(batch.accumulation)]
        self._states = [torch.zeros(batch.micro_batch, *shape, device=device) for _ in self._starts]

    def state(self, micro: int) -> Tensor:
        """What the streams of micro-batch ``micro`` bring along, (micro-batch, *shape)."""
        return self._states[micro]

    def keep(self, micro: int, state: Tensor) -> None:
        """What they take along."""
        self._states[micro] = state

    def pieces(self) -> Iterator[Piece]:
        """This rank's part of all streams, in the order of the global batch."""
        rest = (0,) * (len(self._whole) - 1)
        for start, state in zip(self._starts, self._states, strict=True):
            yield Piece(NAME, self._whole, (start, *rest), state.float())

    def restore(self, step: Committed) -> None:
        """Take them from a verified checkpoint, whatever layout wrote it."""
        rest = (0,) * (len(self._whole) - 1)
        for start, state in zip(self._starts, self._states, strict=True):
            state.copy_(step.read(NAME, (start, *rest), tuple(state.shape)))
