"""Data parallelism: every device holds the model, gradients are summed by all-reduce."""

from __future__ import annotations

from dataclasses import replace

from dml_runner.errors import PlanError, Problem
from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout
from dml_runner.run import Run
from dml_runner.schema.strategy import AllReduce
from dml_runner.strategies.base import data_parallel


def layout(run: Run, words: AllReduce, data: DataFacts, profile: Profile) -> Layout:
    """Every device on the data axis.

    Raises:
        PlanError: the batch does not divide, or the wire and the algorithm do not go together.
    """
    found = data_parallel(run, data, profile, profile.devices, synchronisation="all_reduce", bucket_mb=words.bucket_mb)
    if found.wire in ("int8", "onebit") and words.algorithm != "backend":
        raise PlanError(
            Problem(
                "strategy.algorithm",
                f"quantize.gradients={found.wire} has a way of its own: each rank sums one share of every bucket",
                got=words.algorithm,
                allowed="backend",
            )
        )
    if words.local_steps > 1 and found.wire != "none":
        what = "averages carry weights, which travel as they are"
        raise PlanError(Problem("quantize.gradients", what, got=found.wire, allowed="none", hint="or strategy.local_steps=1"))
    return replace(found, algorithm=words.algorithm, local_steps=words.local_steps, local_after=words.local_after)
