"""Pipeline: the model cut into stages, and micro-batches that flow through them (Huang et al. 2019; Narayanan et al. 2021)."""

from __future__ import annotations

from dataclasses import replace

from dml_runner.errors import PlanError, raise_all
from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Mesh
from dml_runner.run import Run
from dml_runner.schema.strategy import Pipeline
from dml_runner.strategies.base import spread
from dml_runner.strategies.parts.stages import not_divided, not_filled, not_staged, staged_batch, stages_of


def layout(run: Run, words: Pipeline, data: DataFacts, profile: Profile) -> Layout:
    """``stages`` ranks a replica; the cut is open where no boundaries are named.

    Raises:
        PlanError: the stages do not divide the devices, the batch does not divide, or the words do not go together.
    """
    stages = words.stages or profile.devices
    if profile.devices % stages:
        raise not_filled("strategy.stages", stages, profile.devices)
    mesh = Mesh(pipeline=stages, data=profile.devices // stages)
    batch = staged_batch(run, words.microbatches, stages, mesh.data)
    raise_all((*not_divided(run), *not_staged(run, batch)), PlanError)
    found = spread(run, data, profile, mesh, batch, "all_reduce" if mesh.data > 1 else "none", words.bucket_mb)
    return replace(found, stages=stages_of(words.schedule, words.chunks, words.boundaries, stages))
