"""Where a model is cut into stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from dml_runner.facts import ModelFacts
from dml_runner.layout import Recomputed
from dml_runner.planning.costs import work_of

Allowed = Callable[[int, int, int], bool]
"""Whether a virtual stage may hold the blocks from a first to the one before an end: (stage, first, end)."""


@dataclass(frozen=True)
class Loads:
    """What a cut is judged by.

    Attributes:
        blocks: cost of each block.
        stem: cost of what the first stage has besides.
        head: cost of what the last stage has besides.
        boundaries: bytes that travel where a cut stands before block 1, 2, and so on; one fewer than the blocks.
    """

    blocks: tuple[int, ...]
    stem: int
    head: int
    boundaries: tuple[int, ...]


def loads_of(model: ModelFacts, how: Recomputed) -> Loads:
    """The loads of a model whose pieces are measured: FLOPs of forward and backward, with what is recomputed, and boundary bytes."""
    stem, *blocks, head = (work_of([piece], how).all for piece in model.pieces)
    return Loads(tuple(blocks), stem, head, tuple(piece.boundary_bytes for piece in model.pieces[1:-2]))


def cut(loads: Loads, stages: int, allowed: Allowed | None = None) -> tuple[int, ...] | None:
    """The number of the first block of each of ``stages`` virtual stages but the first, one block or more in each.

    The costliest stage costs as little as it can. Of the cuts of which that is true the one is taken over whose boundaries the fewest bytes
    travel, and of those the one with the least sum of squared costs. Found by dynamic programming over (stage, block), in the order of
    stages x blocks^2 steps.

    Returns:
        The boundaries; None: no cut is ``allowed``.
    """
    blocks = len(loads.blocks)
    sums = list(accumulate(loads.blocks, initial=0))

    def cost(stage: int, first: int, end: int) -> int:
        ends = (loads.stem if stage == 0 else 0) + (loads.head if stage == stages - 1 else 0)
        return sums[end] - sums[first] + ends

    def fits(stage: int, first: int, end: int) -> bool:
        return allowed is None or allowed(stage, first, end)

    least = _best(blocks, stages, fits, lambda stage, first, end, so_far: (max(so_far[0], cost(stage, first, end)),), (0,))
    if least is None:
        return None
    most = least[0][0]

    def count(stage: int, first: int, end: int, so_far: tuple[int, ...]) -> tuple[int, ...]:
        travels = loads.boundaries[first - 1] if first else 0
        return so_far[0] + travels, so_far[1] + cost(stage, first, end) ** 2

    found = _best(blocks, stages, lambda *place: cost(*place) <= most and fits(*place), count, (0, 0))
    assert found is not None
    return tuple(found[1])


def _best(
    blocks: int,
    stages: int,
    fits: Allowed,
    add: Callable[[int, int, int, tuple[int, ...]], tuple[int, ...]],
    nothing: tuple[int, ...],
) -> tuple[tuple[int, ...], Sequence[int]] | None:
    """The least value of all cuts, where ``add`` puts a stage to the value of those before it, and the boundaries that have it."""
    best: list[dict[int, tuple[tuple[int, ...], tuple[int, ...]]]] = [{0: (nothing, ())}]
    for stage in range(stages):
        rest = stages - stage - 1
        ends = range(stage + 1, blocks - rest + 1) if rest else (blocks,)
        row = {}
        for end in ends:
            ways = [
                (add(stage, first, end, value), (*cuts, first) if first else cuts)
                for first, (value, cuts) in best[-1].items()
                if first < end and fits(stage, first, end)
            ]
            if ways:
                row[end] = min(ways)
        best.append(row)
    return best[-1].get(blocks)
