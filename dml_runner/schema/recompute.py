"""What is computed twice so that it need not be kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Count, Positive, Section

Kept = Literal["none", "inputs", "products", "open"]


class RecomputeWords(Section):
    """What all ways of recomputing have."""

    offload: bool
    """Keep what is kept for backward in host memory, where the device is a GPU."""


class NoRecompute(RecomputeWords):
    """Everything that backward needs is kept."""

    name: Literal["none"]
    """The way."""


class FullRecompute(RecomputeWords):
    """Only what enters the blocks is kept; backward computes the rest again (Chen et al. 2016)."""

    name: Literal["full"]
    """The way."""
    every: Count
    """Keep what enters every so many-th block; those blocks are computed again together."""


class SelectiveRecompute(RecomputeWords):
    """Results of matrix products are kept too, and what is cheap is computed again (Korthikanti et al. 2022)."""

    name: Literal["selective"]
    """The way."""


class AutoRecompute(RecomputeWords):
    """As much is recomputed as the memory asks for, and no more."""

    name: Literal["auto"]
    """The way."""
    budget_gb: Positive | None
    """GB a device may hold (10^9 bytes); null: what it has."""


Recompute = Annotated[NoRecompute | FullRecompute | SelectiveRecompute | AutoRecompute, Field(discriminator="name")]
