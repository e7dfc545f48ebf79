"""Hybrid: replicas, stages and split layers on one mesh (Narayanan et al. 2021), and an optimizer divided over replicas."""

from __future__ import annotations

from dataclasses import replace

from dml_runner.errors import PlanError, Problem, raise_all
from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Mesh, divide_batch
from dml_runner.run import Run
from dml_runner.schema.strategy import Hybrid
from dml_runner.strategies.base import spread
from dml_runner.strategies.parts.stages import not_divided, not_filled, not_staged, staged_batch, stages_of


def layout(run: Run, words: Hybrid, data: DataFacts, profile: Profile) -> Layout:
    """A mesh of data x pipeline x tensor ranks.

    Raises:
        PlanError: the product is not the number of devices, the batch does not divide, or the words do not go together.
    """
    mesh = _mesh(words, profile.devices)
    train, staged = run.train, mesh.pipeline > 1
    if staged:
        batch = staged_batch(run, words.microbatches, mesh.pipeline, mesh.data)
    else:
        batch = divide_batch(train.global_batch, train.micro_batch, train.accumulation, mesh.data)
    raise_all((*not_divided(run), *(not_staged(run, batch) if staged else ()), *_unused(words)), PlanError)
    found = spread(run, data, profile, mesh, batch, "all_reduce" if mesh.data > 1 else "none", words.bucket_mb)
    return replace(
        found,
        sequence_parallel=words.sequence_parallel and mesh.tensor > 1,
        zero_stage=words.zero_stage if mesh.data > 1 else 0,
        stages=stages_of(words.schedule, words.chunks, words.boundaries, mesh.pipeline) if staged else None,
    )


def _mesh(words: Hybrid, devices: int) -> Mesh:
    fixed = words.pipeline * words.tensor
    if devices % fixed:
        raise not_filled("strategy.pipeline", words.pipeline, devices, f" x tensor {words.tensor}" if words.tensor > 1 else "")
    replicas = devices // fixed
    if words.data not in (None, replicas):
        what = f"x pipeline {words.pipeline} x tensor {words.tensor} is not the {devices} device(s) there are"
        hint = "null takes what the other two leave; devices = hardware.nodes x hardware.devices_per_node"
        raise PlanError(Problem("strategy.data", what, got=str(words.data), allowed=f"null, {replicas}", hint=hint))
    return Mesh(words.pipeline, replicas, words.tensor)


def _unused(words: Hybrid) -> list[Problem]:
    """Words of stages where there are none."""
    if words.pipeline > 1 or (words.microbatches is None and words.boundaries is None and words.chunks is None):
        return []
    what = "microbatches, boundaries and chunks are of stages"
    return [Problem("strategy.pipeline", what, got="1", allowed="2 or more", hint="or leave those out")]
