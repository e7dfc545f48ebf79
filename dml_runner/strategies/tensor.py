"""Tensor: every layer split over the ranks of a group (Shoeybi et al. 2019; Korthikanti et al. 2022)."""

from __future__ import annotations

from dataclasses import replace

from dml_runner.errors import PlanError, raise_all
from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Mesh, divide_batch
from dml_runner.run import Run
from dml_runner.schema.strategy import Tensor
from dml_runner.strategies.base import spread
from dml_runner.strategies.parts.stages import not_divided, not_filled


def layout(run: Run, words: Tensor, data: DataFacts, profile: Profile) -> Layout:
    """``degree`` ranks a replica.

    Raises:
        PlanError: the degree does not divide the devices, the batch does not divide, or the words do not go together.
    """
    degree = words.degree or profile.devices // profile.nodes
    if profile.devices % degree:
        raise not_filled("strategy.degree", degree, profile.devices)
    raise_all(not_divided(run), PlanError)
    mesh, train = Mesh(data=profile.devices // degree, tensor=degree), run.train
    batch = divide_batch(train.global_batch, train.micro_batch, train.accumulation, mesh.data)
    found = spread(run, data, profile, mesh, batch, "all_reduce" if mesh.data > 1 else "none", words.bucket_mb)
    return replace(found, sequence_parallel=words.sequence_parallel)
