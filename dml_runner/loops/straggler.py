"""A rank that computes slower than the others, named once it has been so for a while."""

from __future__ import annotations

from collections.abc import Sequence

from dml_runner.layout import Mesh

SLOWER = 1.5
"""Computing time over the median rank's that counts as slow."""
STEPS = 6
"""Steps, at least, over which computing times are compared."""
TIMES = 2
"""Comparisons in a row in which a rank must be slow before it is named."""


class Stragglers:
    """Watches each rank's own computing time, beside that of the ranks that have the same to do: stages of a pipeline differ."""

    def __init__(self, mesh: Mesh) -> None:
        self._alike = [[rank for rank in range(mesh.size) if mesh.pipeline_rank(rank) == stage] for stage in range(mesh.pipeline)]
        self._steps = 0
        self._computing_s: list[float] = []
        self._slow: dict[int, int] = {}

    def see(self, computing_s: Sequence[float], steps: int) -> str | None:
        """Take in every rank's mean seconds of computing over ``steps`` steps; a sentence when a rank is first known to be slow."""
        sofar = self._computing_s or [0.0] * len(computing_s)
        self._steps += steps
        self._computing_s = [before + mean * steps for before, mean in zip(sofar, computing_s, strict=True)]
        if len(computing_s) < 2 or self._steps < STEPS:
            return None
        means = [total / self._steps for total in self._computing_s]
        self._steps, self._computing_s = 0, []
        return self._compare(means)

    def _compare(self, means: Sequence[float]) -> str | None:
        for alike in self._alike:
            usual = sorted(means[rank] for rank in alike)[(len(alike) - 1) // 2]
            for rank in alike:
                slow = means[rank] > SLOWER * usual
                self._slow[rank] = self._slow.get(rank, 0) + 1 if slow else 0
                if self._slow[rank] == TIMES:
                    took, usually = f"{means[rank] * 1e3:.1f} ms", f"{usual * 1e3:.1f} ms"
                    return f"rank {rank} is slow: it computes {took} a step where the median rank takes {usually}"
        return None
