"""Plan: what a job will be, told before anything runs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from dml_runner import engines, plugins
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, ModelFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Servers
from dml_runner.planning.activations import are_known, cuts_of, pieces_of, stage_activations
from dml_runner.planning.costs import on_paper, work_of
from dml_runner.planning.memory import rank_bytes, server_bytes
from dml_runner.run import Run
from dml_runner.schedules import build
from dml_runner.schedules.in_flight import in_flight
from dml_runner.tensor_rules import notes

NOT_COUNTED = "activations are not counted: memory is weights, gradients and optimizer state"
"""The warning of a plan whose activations are not known."""


@dataclass(frozen=True)
class Stage:
    """A virtual stage.

    Attributes:
        rank: the pipeline rank it is on.
        first: number of its first block.
        end: number of the block behind its last.
        share: its share of the FLOPs of forward and backward, what is recomputed included: 0 to 1.
        forward_flops: of a sample.
        backward_flops: of a sample.
        weight_flops: the part of ``backward_flops`` that can be put off.
        in_flight: the most micro-batches it holds activations of.
        held_bytes: activations of one of them.
    """

    rank: int
    first: int
    end: int
    share: float
    forward_flops: int
    backward_flops: int
    weight_flops: int
    in_flight: int
    held_bytes: int


@dataclass(frozen=True)
class Plan:
    """What ``dml plan`` tells.

    Attributes:
        parameters: elements of the model as published.
        head_parameters: elements its head adds.
        world_size: processes.
        fits: whether ``memory_per_device_bytes`` is at most what a device has.
        memory_per_device_bytes: on the fullest rank.
        memory: the same, by kind, in bytes.
        layout: how the job is executed.
        warnings: what the figures leave out, and what the user may not expect.
        bubble: share of all ranks' time in which their stages have nothing to compute, 0 to 1; 0 without stages.
        stages: each virtual stage; empty: the model is not cut.
        ranks: bytes by kind on each pipeline rank.
    """

    parameters: int
    head_parameters: int
    world_size: int
    fits: bool
    memory_per_device_bytes: int
    memory: dict[str, int]
    layout: Layout
    warnings: tuple[str, ...]
    bubble: float = 0.0
    stages: tuple[Stage, ...] = ()
    ranks: tuple[dict[str, int], ...] = ()

    @property
    def surprises(self) -> tuple[str, ...]:
        """The warnings of what the user may not expect: a start tells them too."""
        return tuple(warning for warning in self.warnings if warning != NOT_COUNTED)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self)


def lay_out(run: Run, data: DataFacts, profile: Profile) -> Layout:
    """The layout of a job on a machine: its strategy's, with an engine that can execute it.

    Raises:
        PlanError: it cannot be laid out there.
        ConfigError: the training data is smaller than one batch.
    """
    name = run.strategy.name
    strategy = plugins.module("strategy", name) or importlib.import_module(f"dml_runner.strategies.{name}")
    layout = engines.choose(strategy.layout(run, run.strategy, data, profile))
    if layout.batch.global_batch > data.train_samples:
        raise ConfigError(
            Problem(
                "data",
                "fewer training samples than one global batch",
                got=f"{data.train_samples} samples of {data.seq_len} tokens",
                allowed=f"at least {layout.batch.global_batch}",
                hint="make train.global_batch or data.seq_len smaller",
            )
        )
    return layout


def make_plan(run: Run, model: ModelFacts, layout: Layout, profile: Profile) -> Plan:
    """What executing ``layout``, which is closed, will cost."""
    ranks = rank_bytes(model, run.optimizer, layout)
    memory = max(ranks, key=lambda held: sum(held.values()))
    needed = sum(memory.values())
    stages, bubble = _stages(model, layout) if layout.stages is not None and are_known(model, layout) else ((), 0.0)
    return Plan(
        parameters=model.parameters,
        head_parameters=model.head_parameters,
        world_size=layout.world_size,
        fits=needed <= profile.memory_bytes,
        memory_per_device_bytes=needed,
        memory=memory,
        layout=layout,
        warnings=tuple(_warnings(run, model, layout, profile)),
        bubble=bubble,
        stages=stages,
        ranks=ranks,
    )


def _warnings(run: Run, model: ModelFacts, layout: Layout, profile: Profile) -> Iterator[str]:
    if not are_known(model, layout):
        yield NOT_COUNTED
    if layout.servers is not None:
        yield _of_servers(layout.servers, server_bytes(model, run.optimizer, layout, layout.servers))
    if layout.mesh.tensor > 1:
        yield from notes(model.plan)
    idle = profile.devices - layout.mesh.size
    if idle > 0:
        yield f"strategy={layout.strategy} leaves {idle} of {profile.devices} devices idle"


def _stages(model: ModelFacts, layout: Layout) -> tuple[tuple[Stage, ...], float]:
    """The virtual stages, and the bubble."""
    assert layout.stages is not None
    ranks = layout.mesh.pipeline
    works = [work_of(pieces, layout.recompute) for pieces in pieces_of(model, layout)]
    on_the_way = in_flight(build(layout.stages, ranks, layout.batch.accumulation))
    total = sum(work.all for work in works)
    cuts = zip(pairwise(cuts_of(model, layout.stages)), works, stage_activations(model, layout), strict=True)
    stages = tuple(
        Stage(
            rank=number % ranks,
            first=first,
            end=end,
            share=work.all / total if total else 0.0,
            forward_flops=work.forward,
            backward_flops=work.backward,
            weight_flops=work.weight,
            in_flight=on_the_way[number % ranks][number],
            held_bytes=found.held,
        )
        for number, ((first, end), work, found) in enumerate(cuts)
    )
    return stages, on_paper(layout, works).idle_share


def _of_servers(servers: Servers, held: dict[str, int]) -> str:
    """A line on what a server holds."""
    who = f"each of {servers.count} servers" if servers.count > 1 else "the server"
    where = "" if servers.dedicated else ", in a worker's process"
    kinds = ", ".join(f"{kind} {bytes_text(count)}" for kind, count in held.items() if count)
    return f"{who} holds {bytes_text(sum(held.values()))} in host memory{where}: {kinds}"


def bytes_text(count: int) -> str:
    """Bytes for people, in GB (10^9 bytes) or MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
