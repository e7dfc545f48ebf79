"""Plan: what a job will be, told before anything runs."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from typing import Any

from dml_runner import engines, plugins
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, ModelFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Servers
from dml_runner.planning.memory import server_bytes, state_bytes
from dml_runner.run import Run


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
    """

    parameters: int
    head_parameters: int
    world_size: int
    fits: bool
    memory_per_device_bytes: int
    memory: dict[str, int]
    layout: Layout
    warnings: tuple[str, ...]

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
    """What executing ``layout`` will cost."""
    memory = state_bytes(model, run.optimizer, layout)
    needed = sum(memory.values())
    fits = needed <= profile.memory_bytes
    warnings = ["activations are not counted: memory is weights, gradients and optimizer state"]
    if layout.servers is not None:
        warnings.append(_of_servers(layout.servers, server_bytes(model, run.optimizer, layout, layout.servers)))
    idle = profile.devices - layout.mesh.size
    if idle > 0:
        warnings.append(f"strategy={layout.strategy} leaves {idle} of {profile.devices} devices idle")
    return Plan(model.parameters, model.head_parameters, layout.world_size, fits, needed, memory, layout, tuple(warnings))


def _of_servers(servers: Servers, held: dict[str, int]) -> str:
    """A line on what a server holds."""
    who = f"each of {servers.count} servers" if servers.count > 1 else "the server"
    where = "" if servers.dedicated else ", in a worker's process"
    kinds = ", ".join(f"{kind} {bytes_text(count)}" for kind, count in held.items() if count)
    return f"{who} holds {bytes_text(sum(held.values()))} in host memory{where}: {kinds}"


def bytes_text(count: int) -> str:
    """Bytes for people, in GB (10^9 bytes) or MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
