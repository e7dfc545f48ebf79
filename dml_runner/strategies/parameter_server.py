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

    Raises:
        PlanError: the batch does not divide, or the words do not go together.
    """
    raise_all(_contradictions(run, words, profile.devices), PlanError)
    found = data_parallel(run, data, profile, profile.devices, synchronisation="servers", bucket_mb=words.bucket_mb)
    if words.helpers:
        return replace(found, synchronisation="all_reduce", helpers=words.helpers)
    dedicated = words.placement == "dedicated"
    servers = Servers(words.servers, dedicated, words.consistency, words.staleness, words.replicas, words.replicate_every)
    return replace(found, servers=servers)


def _contradictions(run: Run, words: ParameterServer, workers: int) -> Iterator[Problem]:
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
