"""Progress: how far a run has come, and what early stopping has seen. All of it goes into a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dml_runner.schema.train import Stop


@dataclass
class Progress:
    """The loop's own state.

    Attributes:
        step: number of the last update that was made.
        evaluated: number of the last update after which the held-out set was evaluated.
        loss: loss of the last logged step.
        watched: best value so far of the metric that stops the run early.
        stale: evaluations since then.
        best: best value so far of the metric whose step is kept.
    """

    step: int = 0
    evaluated: int = 0
    loss: float | None = None
    watched: float | None = None
    stale: int = 0
    best: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def out_of_patience(self, row: dict[str, Any], stop: Stop) -> bool:
        """Take in an evaluation; True when early stopping ends the run here."""
        if stop.metric is None or stop.metric not in row:
            return False
        if is_better(stop.metric, row[stop.metric], self.watched):
            self.watched, self.stale = row[stop.metric], 0
        else:
            self.stale += 1
        return self.stale >= stop.patience

    def is_new_best(self, row: dict[str, Any], metric: str | None) -> bool:
        """Take in an evaluation; True when it is the best so far by ``metric``."""
        if metric is None or metric not in row or not is_better(metric, row[metric], self.best):
            return False
        self.best = row[metric]
        return True


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether ``value`` improves on ``best``: losses fall, everything else rises."""
    if best is None:
        return True
    return value < best if metric.endswith("loss") else value > best
