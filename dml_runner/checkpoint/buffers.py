"""Host copies of the tensors to write: the only part of a save that the training waits for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dml_runner.checkpoint.dtypes import CODES
from dml_runner.checkpoint.pieces import Piece, Region, Shape
from dml_runner.errors import Problem, RunFailed


@dataclass(frozen=True)
class Held:
    """A piece whose bytes lie in host memory.

    Attributes:
        key: its name inside the rank's file.
        name: canonical name of the whole tensor.
        shape: of the whole tensor.
        offsets: where the slice starts.
        data: the slice, contiguous, on the host.
    """

    key: str
    name: str
    shape: Shape
    offsets: Shape
    data: Tensor


class HostBuffers:
    """Host memory that is allocated at the first save and used again at every later one."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def hold(self, pieces: Iterable[Piece]) -> list[Held]:
        """Copy every piece to the host; empty slices of non-empty tensors are left out.

        Raises:
            RunFailed: a piece lies outside its tensor, comes twice, or has a number format without a code.
        """
        held: dict[str, Held] = {}
        devices: set[torch.device] = set()
        for piece in pieces:
            region = Region(piece.offsets, tuple(piece.tensor.shape))
            if not region.size and Region(piece.offsets, piece.shape).size:
                continue
            key = _key(piece, region)
            _check(piece, region, repeated=key in held)
            held[key] = Held(key, piece.name, piece.shape, piece.offsets, self._copy(key, piece.tensor.detach()))
            devices.add(piece.tensor.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        self._buffers = {key: piece.data for key, piece in held.items()}
        return list(held.values())

    def _copy(self, key: str, source: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
            buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.device.type == "cuda")
        buffer.copy_(source, non_blocking=True)
        return buffer


def total_bytes(held: Sequence[Held]) -> int:
    """Bytes of the held tensors."""
    return sum(piece.data.nbytes for piece in held)


def _key(piece: Piece, region: Region) -> str:
    if region.shape == piece.shape:
        return piece.name
    return f"{piece.name}@{','.join(map(str, piece.offsets))}"


def _check(piece: Piece, region: Region, repeated: bool) -> None:
    if not region.fits(piece.shape):
        raise _wrong(f"{piece.name}: a slice of shape {region.shape} at {piece.offsets} lies outside the tensor's {piece.shape}")
    if repeated:
        raise _wrong(f"{piece.name}: the same slice came twice")
    if piece.tensor.dtype not in CODES:
        raise _wrong(f"{piece.name}: {piece.tensor.dtype} cannot be stored")


def _wrong(what: str) -> RunFailed:
    return RunFailed(Problem("checkpoint", what))
