"""How the work is spread over the ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Positive, Section


class StrategyWords(Section):
    """A strategy's keys; there is none that all have."""


class Single(StrategyWords):
    """One device trains the whole model on the whole batch."""

    name: Literal["single"]
    """The strategy."""


class AllReduce(StrategyWords):
    """Every rank holds the whole model and a share of the batch; gradients are summed by all-reduce."""

    name: Literal["all_reduce"]
    """The strategy."""
    bucket_mb: Positive
    """Gradients travel in buckets of this many MiB, each as soon as it is full, while backward goes on."""


Strategy = Annotated[Single | AllReduce, Field(discriminator="name")]
