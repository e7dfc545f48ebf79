"""How the learning rate moves over the run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Count, CountOrZero, Section, Share

BatchRule = Literal["none", "linear", "sqrt"]


class Constant(Section):
    """The learning rate stays as it is after the warm-up."""

    name: Literal["constant"]
    """The schedule."""
    warmup_steps: CountOrZero
    """Steps of linear rise from 0 to ``optimizer.lr``."""
    batch_rule: BatchRule
    """Scale the rate with the global batch: ``linear`` (Goyal et al. 2017, section 2.1) or ``sqrt`` (Krizhevsky 2014, section 5)."""
    base_batch: Count | None
    """Global batch, in samples, for which ``optimizer.lr`` was chosen; needed by ``batch_rule``."""


class Decay(Constant):
    """A rate that falls after the warm-up, reaching its end at the last step."""

    name: Literal["cosine", "linear"]  # type: ignore[assignment]
    """``cosine``: half a cosine; ``linear``: a straight line."""
    final_ratio: Share
    """The last step's rate, as a share of the rate after warm-up."""


LrSchedule = Annotated[Constant | Decay, Field(discriminator="name")]
