"""Where metrics go beside the run folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Name, Section


class Local(Section):
    """The run folder alone: metrics.jsonl and summary.json."""

    name: Literal["local"]
    """The tracker."""


class Wandb(Section):
    """Weights & Biases: one run a job, written by rank 0. The key comes from WANDB_API_KEY or `wandb login`, never from a job."""

    name: Literal["wandb"]
    """The tracker."""
    project: Name
    """Project the run is filed under."""
    entity: Name | None
    """Team or user that owns the project; null: the account's default."""
    mode: Literal["online", "offline"]
    """``offline`` writes to the run folder's tracker/ only; `wandb sync` sends it later."""


Tracker = Annotated[Local | Wandb, Field(discriminator="name")]
