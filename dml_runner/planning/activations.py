"""Activations: bytes that a rank holds between forward and backward, and while a piece runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dml_runner.facts import ModelFacts, Piece, Size
from dml_runner.layout import Layout, Stages
from dml_runner.schedules import build
from dml_runner.schedules.in_flight import peak

FP32 = 4


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch in one virtual stage.

    Attributes:
        held: from its forward to its backward.
        working: what comes on top at most while a piece of it runs.
    """

    held: int
    working: int


@dataclass(frozen=True)
class _Unit:
    """What is kept, or computed again, as one.

    Attributes:
        own: bytes that are kept, beside what enters and leaves it.
        needs_input: whether what enters is kept.
        needs_output: whether what leaves is kept.
        leaves: bytes of what leaves.
        peak: bytes while it runs.
        casts: bytes until the stage's forward ends, when autocast lets go of weights in another type.
        output: bytes of what the model puts out, if this is the head.
    """

    own: int
    needs_input: bool
    needs_output: bool
    leaves: int
    peak: int
    casts: int = 0
    output: int = 0


def are_known(model: ModelFacts, layout: Layout) -> bool:
    """Whether activations can be told: the pieces were measured, and what is recomputed is more than one piece."""
    return bool(model.pieces) and (model.undivided is None or layout.recompute.kept == "none")


def cuts_of(model: ModelFacts, stages: Stages | None) -> list[int]:
    """Number of the first block of each virtual stage, and the number of blocks."""
    return [0, *(stages.boundaries if stages else ()), model.blocks]


def pieces_of(model: ModelFacts, layout: Layout) -> list[tuple[Piece, ...]]:
    """The measured pieces of each virtual stage."""
    if model.undivided is not None or layout.stages is None:
        return [model.pieces]
    cuts = cuts_of(model, layout.stages)
    last = len(cuts) - 2
    return [
        model.pieces[(first + 1 if number else 0) : (end + 1 if number < last else None)]
        for number, (first, end) in enumerate(pairwise(cuts))
    ]


def rank_activations(model: ModelFacts, layout: Layout) -> tuple[int, ...]:
    """Bytes of activations on each pipeline rank at its fullest, of a model whose pieces are known.

    Each virtual stage holds as many micro-batches as its schedule has on the way; one piece of one of them runs.
    """
    each = stage_activations(model, layout)
    if layout.stages is None:
        return (each[0].held + each[0].working,)
    schedule = build(layout.stages, layout.mesh.pipeline, layout.batch.accumulation)
    held = peak(schedule, [stage.held for stage in each])
    working = [max(each[stage].working for stage in schedule.stages_of(rank)) for rank in range(layout.mesh.pipeline)]
    return tuple(int(most) + more for most, more in zip(held, working, strict=True))


def stage_activations(model: ModelFacts, layout: Layout, only: int | None = None) -> list[Activations]:
    """Of each virtual stage, or of the whole model; with ``only``, of the virtual stage of this number alone.

    What leaves a piece is counted once: where that piece or the next one needs it for backward. A stage keeps what enters it, as its
    gradient goes back to where it came from. Where stem and head, in one stage, share a tensor, its gradient from the head waits for that
    from the stem. Recomputed blocks keep what enters each stretch of ``every`` blocks (Chen et al. 2016) and,
    of ``products``, those (Korthikanti et al. 2022, section 5); a stretch's other activations are there while its backward runs.
    """
    holding, first, found = _Holding(layout, model.blocks), 0, []
    for number, pieces in enumerate(pieces_of(model, layout)):
        if only in (None, number):
            stage = holding.stage(pieces, holding.leaving(model.pieces[first - 1]) if first else 0)
            waiting = {name for piece in pieces for name in piece.borrowed if name in pieces[0].tensors}
            more = sum(FP32 * t.size // layout.mesh.tensor for t in model.tensors if t.trained and t.name in waiting) if waiting else 0
            found.append(replace(stage, working=stage.working + more))
        first += len(pieces)
    return found


@dataclass(frozen=True)
class _Holding:
    """What pieces hold under a layout of a model of ``blocks`` blocks."""

    layout: Layout
    blocks: int

    @property
    def away(self) -> bool:
        """Whether what is kept of blocks waits in host memory."""
        return self.layout.recompute.offload and self.layout.device == "cuda"

    def stage(self, pieces: Sequence[Piece], enters: int) -> Activations:
        """Of some pieces in a row, which get ``enters`` bytes from the stage before."""
        units = self._units(pieces)
        held, most, casts = 0 if self.away else enters, 0, 0
        output = units[-1].output if self.layout.stages is None else 0  # stages hand it on and forget it
        for unit, following in zip(units, [*units[1:], None], strict=True):
            most = max(most, held + unit.peak + (0 if following is None else output))
            held += unit.own
            if unit.needs_output or (following is not None and following.needs_input):
                held += 0 if self.away else unit.leaves
            casts += unit.casts
            most = max(most, held + casts)
        return Activations(held, max(0, most - held))

    def leaving(self, piece: Piece) -> int:
        """Bytes of what a piece gives for a micro-batch; under ``sequence_parallel`` all blocks but the last give a part of each text."""
        whole = self.layout.batch.micro_batch * piece.boundary_bytes
        parted = self.layout.sequence_parallel and _is_block(piece) and piece.name != f"blocks.{self.blocks - 1}"
        return -(-whole // self.layout.mesh.tensor) if parted else whole

    def _units(self, pieces: Sequence[Piece]) -> list[_Unit]:
        how, units = self.layout.recompute, list[_Unit]()
        stretch: list[Piece] = []
        for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
            if not _is_block(piece) or how.kept in ("none", "open"):
                units.append(self._plain(piece))
                continue
            stretch.append(piece)
            if len(stretch) == how.every or following is None or not _is_block(following):
                units.append(self._again(stretch))
                stretch = []
        return units

    def _plain(self, piece: Piece) -> _Unit:
        own = 0 if self.away and _is_block(piece) else self._of(piece, piece.kept)
        output = self._of(piece, piece.output)
        return _Unit(own, piece.keeps_input, piece.keeps_output, self.leaving(piece), self._peak(piece), output=output)

    def _again(self, stretch: Sequence[Piece]) -> _Unit:
        """A stretch of blocks that backward runs again: then all of it is there, and the gradient of what left it."""
        keeps, leaves = self.layout.recompute.kept == "products" and not self.away, self.leaving(stretch[-1])
        products = sum(self._of(piece, piece.products) for piece in stretch) if keeps else 0
        held, most = products, products
        for piece, following in zip(stretch, [*stretch[1:], None], strict=True):
            there = self._of(piece, piece.kept_products) if keeps else 0
            most = max(most, held + self._peak(piece) - there)
            held += self._of(piece, piece.kept) - there
            if piece.keeps_output or (following is not None and following.keeps_input):
                held += self.leaving(piece)
        most = max(most, held + leaves)
        casts = sum(replace(piece.kept, sample=0, split_sample=0).of(1, self.layout.mesh.tensor) for piece in stretch)
        return _Unit(products, True, False, leaves, most, casts)

    def _peak(self, piece: Piece) -> int:
        """Bytes while a piece runs; where texts are divided by position, what enters a column layer is gathered, once at a time."""
        gathered = self.layout.sequence_parallel and _is_block(piece)
        return self._of(piece, piece.peak) + (self.layout.batch.micro_batch * piece.boundary_bytes if gathered else 0)

    def _of(self, piece: Piece, size: Size) -> int:
        return size.of(self.layout.batch.micro_batch, self.layout.mesh.tensor, self.layout.sequence_parallel and _is_block(piece))


def _is_block(piece: Piece) -> bool:
    return piece.name.startswith("blocks.")
