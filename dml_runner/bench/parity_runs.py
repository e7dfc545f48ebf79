"""The jobs of ``dml bench parity``, trained and compared with one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dml_runner.bench.parity_cells import ADAMW, DROPOUT, SGD, STEPS, Cell
from dml_runner.bench.pool import Job, Ranks, Trained, job_of
from dml_runner.checkpoint.read import open_step
from dml_runner.errors import PlanError

FEW = 10
"""Steps of which every bit is compared, with dropout."""


@dataclass
class Found:
    """What a layout and a family came to.

    Attributes:
        losses: way to recompute -> largest difference to one process, of the loss of any step or of the held-out loss at the end.
        weights: largest difference of any weight after as many steps of SGD; None: not compared.
        dropped: way to recompute -> whether losses, gradient norms and weights with dropout are those of the same layout that recomputes
            nothing, to the last bit.
        refused: way to recompute -> the plan's reasons, each once.
    """

    losses: dict[str, float] = field(default_factory=dict)
    weights: float | None = None
    dropped: dict[str, bool] = field(default_factory=dict)
    refused: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Matrix:
    """Trains cells in one pool, each family in one process first.

    Args:
        pool: of as many processes as any layout has ranks.
        folder: with the texts of ``write_texts``; saved steps and prepared data are kept there.
        steps: of each job.
    """

    def __init__(self, pool: Ranks, folder: Path, steps: int = STEPS) -> None:
        self._pool, self._folder, self._steps = pool, folder, steps
        self._alone: dict[tuple[str, bool], Trained] = {}

    def find(self, layout: str, family: str, recompute: Sequence[str], weights: bool = True, dropout: bool = True) -> Found:
        """Train a layout and a family in every way to recompute, and compare.

        Args:
            layout: its name.
            family: likewise.
            recompute: names of ways.
            weights: whether to compare weights after SGD too, nothing recomputed.
            dropout: whether to compare bits with dropout too, beside nothing recomputed.
        """
        found, jobs = Found(), {}
        for way in recompute:
            try:
                jobs[way] = self._job(Cell(layout, family, way), *ADAMW, f"train.steps={self._steps}")
            except PlanError as error:
                found.refused[way] = tuple(problem.what for problem in error.problems)
        if not jobs:
            return found
        alone = self._single(family, sgd=False)
        for way, trained in zip(jobs, self._pool.train(*jobs.values()), strict=True):
            found.losses[way] = _gap(trained, alone)
        if weights:
            self._single(family, sgd=True)
            self._pool.train(self._by_sgd(layout, family))
            found.weights = self._apart(layout, family)
        again = [way for way in jobs if way != "none"]
        if dropout and again:
            few = [*ADAMW, DROPOUT, f"train.steps={FEW}"]
            kept, *others = self._pool.train(*(self._job(Cell(layout, family, way), *few) for way in ("none", *again)))
            found.dropped = {way: _same(other, kept) for way, other in zip(again, others, strict=True)}
        return found

    def _single(self, family: str, sgd: bool) -> Trained:
        """A family in one process."""
        if (family, sgd) not in self._alone:
            job = self._job(Cell("single", family), *ADAMW, f"train.steps={self._steps}")
            [self._alone[family, sgd]] = self._pool.train(self._by_sgd("single", family) if sgd else job)
        return self._alone[family, sgd]

    def _by_sgd(self, layout: str, family: str) -> Job:
        cell = Cell(layout, family)
        return self._job(cell, *SGD, f"train.steps={self._steps}", save=self._saved(layout, family).parent)

    def _job(self, cell: Cell, *more: str, save: Path | None = None) -> Job:
        return job_of(cell.words(self._folder, *more), self._folder / "cache", save)

    def _saved(self, layout: str, family: str) -> Path:
        return self._folder / f"{layout}-{family}" / "checkpoints" / f"step-{self._steps:08d}"

    def _apart(self, layout: str, family: str) -> float:
        """The largest difference of any weight from one process."""
        step, alone = open_step(self._saved(layout, family)), open_step(self._saved("single", family))
        assert step.tensors == alone.tensors
        names = [name for name in alone.tensors if name.startswith("model/")]
        return max(float((step.read(name) - alone.read(name)).abs().max()) for name in names)


def _gap(trained: Trained, alone: Trained) -> float:
    pairs = zip(trained.losses + trained.held_out, alone.losses + alone.held_out, strict=True)
    return max(abs(ours - theirs) for ours, theirs in pairs)


def _same(one: Trained, other: Trained) -> bool:
    rows = [[(row["loss"], row["grad_norm"]) for row in each.rows] for each in (one, other)]
    return rows[0] == rows[1] and one.held_out == other.held_out and one.weights == other.weights
