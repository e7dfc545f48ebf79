"""What is kept of a run, how often, and what a new start continues from."""

from __future__ import annotations

from typing import Literal

from dml_runner.schema.base import Count, Name, Section


class Checkpoint(Section):
    """Saved steps of a run."""

    every: Count | None
    """Steps between saves; null: only at the end. The end of a run is always saved."""
    keep: Count
    """Newest saved steps that are kept; the best one is kept besides."""
    best: Literal["eval_loss", "eval_accuracy"] | None
    """Metric of evaluations whose best step is saved and kept as checkpoints/best; null: none."""
    resume: Name
    """``auto``: continue the newest unfinished run of the same name and job, else start anew; ``must``: refuse to start anew;
    ``never``: start anew; a run folder or one of its step folders: a new run that continues from there."""
