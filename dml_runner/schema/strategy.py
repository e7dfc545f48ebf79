"""How the work is spread over the ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Count, CountOrZero, Positive, Section

Algorithm = Literal["backend", "ring", "tree", "hierarchical"]
Consistency = Literal["bsp", "ssp", "asp"]


class StrategyWords(Section):
    """A strategy's keys; there is none that all have."""


class Single(StrategyWords):
    """One device trains the whole model on the whole batch."""

    name: Literal["single"]
    """The strategy."""


class AllReduce(StrategyWords):
    """Every rank holds the whole model and a share of the batch; gradients are summed by all-reduce."""

    name: Literal["all_reduce"]
    """The strategy."""
    algorithm: Algorithm
    """How ranks sum: as their backend does, round a ring, up and down two trees, or within each node and then between nodes."""
    bucket_mb: Positive
    """Gradients travel in buckets of this many MiB, each as soon as it is full, while backward goes on."""
    local_steps: Count
    """Steps each rank takes by itself between two averages of the weights; 1: gradients are summed in every step."""
    local_after: CountOrZero
    """Steps with summed gradients before ``local_steps`` begins to count (post-local SGD)."""


class ParameterServer(StrategyWords):
    """Servers hold the weights and the optimizer's state, each a share; workers push gradients to them and pull weights."""

    name: Literal["parameter_server"]
    """The strategy."""
    servers: Count
    """Servers, each with an equal share of the weights."""
    placement: Literal["dedicated", "colocated"]
    """Servers are processes of their own beside the workers, or live in the first workers' processes."""
    consistency: Consistency
    """Workers wait for all pushes of a step (bsp), run at most ``staleness`` pushes ahead of the slowest (ssp), or never wait (asp)."""
    staleness: CountOrZero
    """Pushes a worker may be ahead of the slowest one under ``consistency=ssp``."""
    replicas: Literal[0, 1]
    """Copies of each server's share in another server's memory, from which a run goes on when a server dies."""
    replicate_every: Count
    """Steps between two such copies: what a server's death costs at most, twice over."""
    helpers: CountOrZero
    """Spare processes that only sum gradients; with them every worker sums a share too, and updates its own copy of the weights."""
    bucket_mb: Positive
    """Gradients are pushed, and weights pulled, in buckets of this many MiB, each divided over all servers."""


Strategy = Annotated[Single | AllReduce | ParameterServer, Field(discriminator="name")]
