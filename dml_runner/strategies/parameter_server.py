"""Parameter server: workers compute gradients, servers hold the weights (Li et al. 2014, OSDI)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dml_runner.errors import PlanError, Problem, raise_all
from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Servers
from dml_runner.run import Run
from dml_runner.schema.model import Resnet
from dml_runner.schema.strategy import ParameterServer
from dml_runner.strategies.base import data_parallel


def layout(run: Run, words: ParameterServer, data: DataFacts, profile: Profile) -> Layout:
    """Every device a worker; servers beside them in host memory, or in the first workers' processes.

    With helpers there are no servers: workers and helpers sum, and all workers hold all weights.

    Raises:
        PlanError: the batch does not divide, or the words do not go together.
    """
    raise_all((*_contradictions(run, words, profile.devices), *_against_helpers(run, words, profile.devices)), PlanError)
    found = data_parallel(run, data, profile, profile.devices, synchronisation="servers", bucket_mb=words.bucket_mb)
    if words.helpers:
        return replace(found, synchronisation="all_reduce", helpers=words.helpers)
    dedicated = words.placement == "dedicated"
    servers = Servers(words.servers, dedicated, words.consistency, words.staleness, words.replicas, words.replicate_every)
    return replace(found, servers=servers)


def _contradictions(run: Run, words: ParameterServer, workers: int) -> Iterator[Problem]:
    if words.replicas:
        yield from _without_replicas(run, words)
    if words.placement == "colocated" and words.servers > workers:
        yield Problem("strategy.servers", "more than workers that could have one", got=str(words.servers), allowed=f"1 to {workers}")
    if run.quantize.gradients == "powersgd":
        what = "its matrices are sums over all workers, and a server hears each worker by itself"
        yield Problem("quantize.gradients", what, got="powersgd", allowed="none, fp16, bf16, int8, onebit")
    if words.consistency != "bsp" and run.model.streams:
        what = f"model={run.model.name} carries state from step to step, which needs steps that all workers take together"
        yield Problem("strategy.consistency", what, got=words.consistency, allowed="bsp")
    if words.consistency != "bsp" and isinstance(run.model, Resnet) and run.model.norm == "batch":
        what = "batch norm has running statistics, which workers that do not meet cannot agree on"
        yield Problem("strategy.consistency", what, got=words.consistency, allowed="bsp", hint="or model.norm=group")


def _against_helpers(run: Run, words: ParameterServer, workers: int) -> Iterator[Problem]:
    if not words.helpers:
        return
    useful = workers if workers > 1 else 0
    if words.helpers > useful:
        what = "more than workers, who then sum nothing themselves" if useful else "one worker has nothing to sum"
        yield Problem("strategy.helpers", what, got=str(words.helpers), allowed=f"0 to {useful}" if useful else "0")
    for key, got, allowed in (
        ("consistency", words.consistency, "bsp"),
        ("replicas", str(words.replicas), "0"),
        ("servers", str(words.servers), "1"),
    ):
        if got != allowed:
            what = "with strategy.helpers every worker holds all weights, and all take each step together"
            yield Problem(f"strategy.{key}", what, got=got, allowed=allowed, hint="or strategy.helpers=0")
    if run.quantize.gradients in ("int8", "onebit"):
        what = "helpers add numbers, and a sum of such messages is no message of theirs"
        yield Problem("quantize.gradients", what, got=run.quantize.gradients, allowed="none, fp16, bf16", hint="or strategy.helpers=0")


def _without_replicas(run: Run, words: ParameterServer) -> Iterator[Problem]:
    """Why shares cannot be copied to other servers."""
    key, got = "strategy.replicas", str(words.replicas)
    if words.helpers:
        yield Problem(key, "helpers hold nothing that could be copied", got=got, allowed="0", hint="or strategy.helpers=0")
    elif words.servers < 2:
        yield Problem(key, "a replica lives in another server, and there is one", got=got, allowed="0", hint="or strategy.servers=2")
    elif words.placement == "colocated":
        what = "a server in a worker's process is no rank of its own"
        yield Problem(key, what, got=got, allowed="0", hint="or strategy.placement=dedicated")
    if run.launcher.name != "local":
        what = f"launcher={run.launcher.name} ends all ranks as soon as one dies, and they could not save what they hold"
        yield Problem(key, what, got=got, allowed="0", hint="or launcher=local")
    if run.model.streams:
        what = f"model={run.model.name} carries state from step to step in each worker, of which there is no copy"
        yield Problem(key, what, got=got, allowed="0")
