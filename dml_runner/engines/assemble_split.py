"""Putting a rank together that holds a part of the model: keep its stages, split their layers, and only then take memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from dml_runner import models, optim, schedules
from dml_runner.comm.axes import Axes, open_axes
from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links
from dml_runner.comm.world import World
from dml_runner.engines.base import Engine
from dml_runner.engines.split_engine import Part, SplitEngine
from dml_runner.facts import DataFacts
from dml_runner.layout import Layout, Stages
from dml_runner.models.base import Model, distances
from dml_runner.parallel.batch_norm import connect
from dml_runner.parallel.held import Held, all_of
from dml_runner.parallel.pipeline.executor import Pipeline
from dml_runner.parallel.recompute import recompute
from dml_runner.parallel.stages import keep, users
from dml_runner.parallel.tensor.divide import divide
from dml_runner.parallel.updates import Build, Replicated, Sharded, Update
from dml_runner.run import Run

MB = 2**20
FP32 = 4

Fill = Callable[[Model, Mapping[str, Held]], None]
"""Gives a model without memory its starting weights: what is held of each tensor, by name."""


def assemble_split(run: Run, data: DataFacts, layout: Layout, world: World, fill: Fill) -> Engine:
    """The engine of this rank of a mesh; all ranks call it together.

    Args:
        run: the job.
        data: what it is trained on.
        layout: closed: its stages are cut.
        world: the ranks.
        fill: takes memory and draws or reads the weights.
    """
    axes = open_axes(layout.mesh, world)
    with torch.device("meta"):
        model = models.build(run.model, data)
    whole = {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}
    far = dict(zip((name for name, _ in model.named_parameters()), distances(model), strict=True))
    plan = model.tensor_plan()
    stages = layout.stages or Stages("naive", 1, ())
    cut = (0, *stages.boundaries, len(model.blocks))
    schedule = schedules.build(stages, layout.mesh.pipeline, layout.batch.accumulation)
    place = layout.mesh.pipeline_rank(world.rank)
    mine = schedule.stages_of(place)
    shared: frozenset[str] = frozenset()
    if layout.mesh.pipeline > 1:
        found = users(model)
        shared = found.shared
        keep(model, found, [range(*cut[stage : stage + 2]) for stage in mine], place == 0, place == layout.mesh.pipeline - 1)
    divided = None if axes.tensor is None else divide(model, plan, axes.tensor, layout.sequence_parallel, cut[-1])
    split = {} if divided is None else divided.held
    held = {name: split.get(name) or all_of(whole[name]) for name in model.state_dict(keep_vars=True)}
    fill(model, held)
    recompute(model, layout.recompute, world.device)
    if run.train.compile:
        for block in model.blocks:
            block.compile()
    connect(model, world.sent, None if axes.data is None else axes.data.group, alone=axes.data is None)
    part = _part(model, layout, world, list(far), held, frozenset(split), frozenset(divided.partial if divided else ()), shared, cut, mine)
    update = _update(run, layout, axes, model, far)
    rising, falling, words = (links or Links(None, Sent()) for links in (axes.rising, axes.falling, axes.words))
    again = layout.recompute.kept != "none"
    pipeline = Pipeline(schedule, place, rising, falling, words, world.device, recomputes=again, record=layout.mesh.pipeline > 1)
    return SplitEngine(model, part, pipeline, update, axes, layout, world, run.seed, run.train.clip_norm)


def _part(
    model: Model,
    layout: Layout,
    world: World,
    names: Sequence[str],
    held: Mapping[str, Held],
    split: frozenset[str],
    partial: frozenset[str],
    shared: frozenset[str],
    cut: Sequence[int],
    mine: Sequence[int],
) -> Part:
    """What this rank holds, and what of it it answers for."""
    mesh = layout.mesh
    place, first_of_row = mesh.pipeline_rank(world.rank), mesh.tensor_rank(world.rank) == 0
    trained = [name for name, p in reversed(list(model.named_parameters())) if p.requires_grad]
    tied = [name for name in trained if name in shared]
    unsummed = [name for name in trained if name in partial]
    late = [name for name in trained if name in shared | partial]
    of_stage = {name: _stage_of(name, cut, mine) for name in trained}
    stages = {stage: [name for name in trained if of_stage[name] == stage and name not in late] for stage in mine}
    counted = {name for name in held if (first_of_row or name in split) and (place == 0 or name not in shared)}
    return Part(names, held, stages, late, tied, unsummed, frozenset(counted), cut)


def _stage_of(name: str, cut: Sequence[int], mine: Sequence[int]) -> int:
    """The virtual stage whose backward is the last to add to a parameter's gradient."""
    if not name.startswith("blocks."):
        return mine[0] if mine[0] == 0 else mine[-1]
    block = int(name.split(".")[1])
    return next(stage for stage in mine if cut[stage] <= block < cut[stage + 1])


def _update(run: Run, layout: Layout, axes: Axes, model: Model, far: Mapping[str, tuple[nn.Parameter, int, bool]]) -> Update:
    def build(parameters: Sequence[tuple[nn.Parameter, str]]) -> torch.optim.Optimizer:
        return optim.build(run.optimizer, [(parameter, far[name][1], far[name][2]) for parameter, name in parameters])

    make: Build = build
    trained = {name: p for name, p in reversed(list(model.named_parameters())) if p.requires_grad}
    bucket = max(1, int(layout.bucket_mb * MB) // FP32)
    if layout.zero_stage and axes.data is not None:
        return Sharded(trained, axes.data, bucket, make)
    return Replicated(trained, axes.data, bucket, make)
