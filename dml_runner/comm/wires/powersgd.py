"""PowerSGD: a gradient matrix travels as two thin factors, found by one step of power iteration a step (Vogels et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from zlib import crc32

import torch
from torch import Tensor

from dml_runner.comm.links import Links
from dml_runner.comm.wires.base import AllReduce
from dml_runner.comm.wires.codecs import TINY
from dml_runner.comm.wires.laws import travels_as_factors
from dml_runner.comm.wires.memory import Memory, forget_non_finite


class PowerSGD:
    """Matrices as factors of rank r with error feedback (Vogels et al. 2019, algorithms 1 and 2); the rest of a bucket as it is.

    For a gradient M (its first dimension by all others) plus its remembered error, and last step's right factor Q: P = M Q is
    summed over the ranks and made orthonormal, Q = M^T P is summed, and P Q^T takes the place of the sum of M. A rank's
    error is what its own factors leave out, M - P (M^T P)^T. One-dimensional gradients, and matrices whose factors would not
    be half as large, are summed whole, with the P's. A bucket takes two all-reduces, whatever is in it.

    The left factor is made orthonormal by Householder reflections (LAPACK's QR), on every rank for itself: they all get the same
    bits where they run on the same kind of hardware. A gradient of zeros stays zero.

    What is left out arrives steps late, the later the more directions of like strength a gradient has: such a one diverges at a
    rate that plain SGD still stands, and wants a higher rank or a lower rate.

    Args:
        power_rank: r, from 1.
        all_reduce: sums the factors.
        feedback: False forgets every error; there to be compared with.
    """

    def __init__(self, power_rank: int, all_reduce: AllReduce, feedback: bool = True) -> None:
        self._rank = power_rank
        self._all_reduce = all_reduce
        self._feedback = feedback
        self._memory = Memory()

    def all_reduce(self, links: Links, key: int, flat: Tensor, parts: Sequence[Tensor]) -> None:
        """As in Wire."""
        if links.size == 1:
            return
        factored = [travels_as_factors(part.shape, self._rank) for part in parts]
        matrices = {f"{key}/{at}": part.view(part.shape[0], -1) for at, part in enumerate(parts) if factored[at]}
        whole = [part.view(-1) for at, part in enumerate(parts) if not factored[at]]
        if self._feedback:
            for name, matrix in matrices.items():
                matrix.add_(self._memory.recall(f"{name}/error", matrix.shape, matrix.device))
        lefts = self._sum_lefts(links, flat, whole, matrices)
        rights = self._sum_rights(links, matrices, lefts)
        for matrix, left, right in zip(matrices.values(), lefts, rights, strict=True):
            torch.mm(left, right.T, out=matrix)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """For gradient ``at`` of bucket ``key``: ``<key>/<at>/right``, the same on all ranks, and ``<key>/<at>/error``."""
        return self._memory.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """As in Wire."""
        self._memory.restore(state)

    def _sum_lefts(self, links: Links, flat: Tensor, whole: Sequence[Tensor], matrices: Mapping[str, Tensor]) -> list[Tensor]:
        """The left factors of the matrices' sum, orthonormal; sums what travels whole in place."""
        sizes = [part.numel() for part in whole] + [len(matrix) * self._rank for matrix in matrices.values()]
        buffer = flat.new_empty(sum(sizes))
        pieces = buffer.split(sizes)
        lefts = [piece.view(-1, self._rank) for piece in pieces[len(whole) :]]
        for part, piece in zip(whole, pieces, strict=False):
            piece.copy_(part)
        for (name, matrix), left in zip(matrices.items(), lefts, strict=True):
            torch.mm(matrix, self._last_right(name, matrix), out=left)
        self._all_reduce(links, buffer)
        for part, piece in zip(whole, pieces, strict=False):
            part.copy_(piece)
        return [torch.linalg.qr(left).Q for left in lefts]

    def _sum_rights(self, links: Links, matrices: Mapping[str, Tensor], lefts: Sequence[Tensor]) -> list[Tensor]:
        """The right factors of the matrices' sum, remembered for the next step, as are the errors of the own ones."""
        if not matrices:
            return []
        sizes = [matrix.shape[1] * self._rank for matrix in matrices.values()]
        buffer = lefts[0].new_empty(sum(sizes))
        rights = [piece.view(-1, self._rank) for piece in buffer.split(sizes)]
        for (name, matrix), left, right in zip(matrices.items(), lefts, rights, strict=True):
            torch.mm(matrix.T, left, out=right)
            if self._feedback:
                error = self._memory.recall(f"{name}/error", matrix.shape, matrix.device)
                torch.addmm(matrix, left, right.T, alpha=-1, out=error)
                forget_non_finite(error)
        self._all_reduce(links, buffer)
        for (name, matrix), right in zip(matrices.items(), rights, strict=True):
            kept, largest = self._last_right(name, matrix), right.abs().amax(0)
            # A column's length says nothing, and of length 1 it does not overflow in the next product. From a column of zeros
            # none would ever come back.
            usable = largest.isfinite() & (largest > TINY)
            kept.copy_(torch.where(usable, right / largest, kept))
        return rights

    def _last_right(self, name: str, matrix: Tensor) -> Tensor:
        """The right factor to multiply with: last step's or, at first, random numbers that are the same on all ranks."""
        shape = matrix.shape[1], self._rank

        def first() -> Tensor:
            return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))

        return self._memory.recall(f"{name}/right", shape, matrix.device, first)
