"""The one order in which a rank's engine is put together.

build on meta -> keep stages -> split layers -> materialise and initialise -> pretrained weights -> recompute -> compile ->
replicate -> optimizer -> schedule. A module is built without memory, so that what comes to cut or split it never holds more than its
share; weights are drawn by name, so no layout changes them; what pretrained weights lack keeps what was drawn; what is recomputed is
compiled as it runs; replicas wrap what is compiled, or its weights are laid out for servers; the optimizer sees the final parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from dml_runner import models, optim
from dml_runner.comm.links import Links
from dml_runner.comm.world import World
from dml_runner.engines.assemble_servers import assemble_served
from dml_runner.engines.assemble_split import assemble_split
from dml_runner.engines.base import Engine
from dml_runner.engines.helper_engine import Helping
from dml_runner.engines.pretrained import load_pretrained
from dml_runner.engines.torch_engine import TorchEngine
from dml_runner.facts import DataFacts
from dml_runner.layout import Layout
from dml_runner.models.base import Model, distances, initialise
from dml_runner.parallel.batch_norm import connect
from dml_runner.parallel.held import Held
from dml_runner.parallel.recompute import recompute
from dml_runner.parallel.replicate import Replicas, Sum
from dml_runner.run import Run


def build_model(run: Run, data: DataFacts, device: torch.device, pretrained: str | None = None) -> Model:
    """The job's model on ``device`` with its starting weights: drawn, and taken from ``pretrained`` where that has them.

    Raises:
        ConfigError: those weights are gone, or are not of such a model.
    """
    with torch.device("meta"):
        model = models.build(run.model, data)
    _begin(model, run, device, None)
    if pretrained is not None:
        load_pretrained(model, pretrained)
    return model


def _begin(model: Model, run: Run, device: torch.device, held: Mapping[str, Held] | None) -> None:
    """Give a model memory and its first weights; of each parameter what is ``held`` of it, or all."""
    _materialise(model, device)
    initialise(model, run.seed, held)


def _split(run: Run, data: DataFacts, layout: Layout, world: World, pretrained: str | None) -> Engine:
    """The engine of a rank that holds a part of the model."""

    def fill(model: Model, held: Mapping[str, Held]) -> None:
        _begin(model, run, world.device, held)
        if pretrained is not None:
            with torch.device("meta"):
                whole = models.build(run.model, data)
            load_pretrained(model, pretrained, whole, held)

    return assemble_split(run, data, layout, world, fill)


def assemble(run: Run, data: DataFacts, layout: Layout, world: World, pretrained: str | None = None) -> Engine:
    """This rank's engine, ready for its first step.

    Args:
        run: the job.
        data: what it is trained on.
        layout: how it is executed.
        world: the ranks.
        pretrained: where weights to start from are; None: there are none, or the engine will be restored from a checkpoint.

    Raises:
        ConfigError: see ``build_model``.
    """
    torch.set_float32_matmul_precision("high" if layout.precision == "tf32" else "highest")
    _use_deterministic_kernels(run.train.deterministic and layout.device == "cuda")
    if layout.role(world.rank) == "helper":
        return _helping(run, data, layout, world)
    if layout.divided:
        return _split(run, data, layout, world, pretrained)
    model = build_model(run, data, world.device, pretrained)
    recompute(model, layout.recompute, world.device)
    if run.train.compile:
        model.compile()
    workers = _workers(layout)
    connect(model, world.sent, workers)
    if layout.servers is not None:
        return assemble_served(run, layout, world, model)
    replicas = _replicas(model, layout, world, workers) if layout.synchronisation == "all_reduce" and layout.mesh.size > 1 else None
    optimizer = optim.build(run.optimizer, distances(model))
    return TorchEngine(model, replicas, optimizer, layout, world, run.seed, run.train.clip_norm)


def _replicas(model: Model, layout: Layout, world: World, workers: dist.ProcessGroup | None) -> Replicas:
    everyone = Links(dist.group.WORLD, world.sent)
    links = everyone.part(range(layout.mesh.size))
    assert links is not None
    node = layout.mesh.data // layout.nodes
    how = Sum(links, layout.algorithm, node, layout.wire, layout.wire_rank, everyone if layout.helpers else None)
    return Replicas(model, world.device, layout.bucket_mb, world.sent, how, workers, carrying=True)


def _helping(run: Run, data: DataFacts, layout: Layout, world: World) -> Helping:
    """A helper's engine; of the model it wants the names alone."""
    with torch.device("meta"):
        model = models.build(run.model, data)
    _workers(layout)  # all ranks make a group together, those outside it too
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(layout.wire, torch.float32)
    return Helping(Links(dist.group.WORLD, world.sent), layout.mesh.size, dtype, model)


def _workers(layout: Layout) -> dist.ProcessGroup | None:
    """A group of those that train; None: all do."""
    others = layout.lockstep and layout.world_size > layout.mesh.size
    return dist.new_group(list(range(layout.mesh.size))) if others else None


def _materialise(model: Model, device: torch.device) -> None:
    """As ``Module.to_empty``, which on the meta device goes through sympy: a third of a second of start-up."""
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))  # type: ignore[no-untyped-call]


def _use_deterministic_kernels(wanted: bool) -> None:
    if wanted != torch.are_deterministic_algorithms_enabled():  # to set it again loads the compiler: a second of start-up
        torch.use_deterministic_algorithms(wanted)
