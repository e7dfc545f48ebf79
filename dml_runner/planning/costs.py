"""What pieces and stages cost, in FLOPs: a profile knows no speeds yet, so costs are relative, and links are taken to be free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dml_runner.facts import Piece
from dml_runner.layout import Layout, Recomputed
from dml_runner.schedules import build
from dml_runner.schedules.timeline import Costs, Timeline, timeline


@dataclass(frozen=True)
class Work:
    """FLOPs of a sample.

    Attributes:
        forward: of forward.
        backward: of backward, and of what it computes again.
        weight: the part of ``backward`` that can be put off; none where a stage is recomputed, as a backward in two halves would do that
            twice (``parallel.pipeline``).
    """

    forward: int
    backward: int
    weight: int

    @property
    def all(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def work_of(pieces: Sequence[Piece], how: Recomputed) -> Work:
    """Of some pieces in a row. Recomputed blocks run forward once more, but for matrix products where those are kept."""
    forward, backward = sum(piece.forward_flops for piece in pieces), sum(piece.backward_flops for piece in pieces)
    again = sum(piece.forward_flops for piece in pieces if piece.name.startswith("blocks.")) if how.kept == "inputs" else 0
    weight = 0 if how.kept in ("inputs", "products") else sum(piece.weight_flops for piece in pieces)
    return Work(forward, backward + again, weight)


def on_paper(layout: Layout, works: Sequence[Work]) -> Timeline:
    """A step of a layout whose virtual stages have these ``works``, with FLOPs of a sample in the place of seconds."""
    assert layout.stages is not None
    costs = Costs(
        forward=tuple(float(work.forward) for work in works),
        backward=tuple(float(work.backward) for work in works),
        weight=tuple(float(work.weight) for work in works),
        transfer=(0.0,) * (len(works) - 1),
    )
    return timeline(build(layout.stages, layout.mesh.pipeline, layout.batch.accumulation), costs)
