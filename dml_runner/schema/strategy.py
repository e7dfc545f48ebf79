"""How the work is spread over the ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Count, CountOrZero, Positive, Section

Algorithm = Literal["backend", "ring", "tree", "hierarchical"]
Consistency = Literal["bsp", "ssp", "asp"]
Schedule = Literal["naive", "gpipe", "1f1b", "interleaved_1f1b", "zero_bubble"]


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


class Pipeline(StrategyWords):
    """The model's blocks are cut into stages, one after the other on as many ranks, and micro-batches flow through them."""

    name: Literal["pipeline"]
    """The strategy."""
    stages: Count | None
    """Ranks one after the other, each with a part of the model; null: all devices. What remains forms the data axis."""
    boundaries: tuple[Count, ...] | None
    """Number of the first block of each virtual stage but the first; null: cut so that the costliest stage costs least."""
    schedule: Schedule
    """Order of a rank's work: one micro-batch at a time through all stages (naive), all forwards and then all backwards (gpipe), each
    backward as soon as it can (1f1b), that with several parts of the model a rank (interleaved_1f1b), or with the gradients of weights
    put off until a rank would wait (zero_bubble)."""
    microbatches: Count | None
    """Micro-batches a step, in the place of ``train.accumulation``; null: the smallest divisor of a replica's batch that is at least
    twice the stages, else that batch."""
    chunks: Count | None
    """Virtual stages a rank; null: 2 where the schedule interleaves, else 1."""
    bucket_mb: Positive
    """Gradients travel along the data axis in buckets of this many MiB."""


class Tensor(StrategyWords):
    """Every layer is split: matrices by columns and rows, embeddings and loss by token, over the ranks of a group."""

    name: Literal["tensor"]
    """The strategy."""
    degree: Count | None
    """Ranks over which each layer is split; null: all devices of a node. What remains forms the data axis."""
    sequence_parallel: bool
    """Divide by position in the text what is not split otherwise: norms, dropout and what is kept for backward."""
    bucket_mb: Positive
    """Gradients travel along the data axis in buckets of this many MiB."""


class Hybrid(StrategyWords):
    """Data, pipeline and tensor axes at once, on a mesh whose product is the number of devices."""

    name: Literal["hybrid"]
    """The strategy."""
    data: Count | None
    """Replicas; null: what the other two axes leave of the devices."""
    pipeline: Count
    """Stages."""
    tensor: Count
    """Ranks over which each layer is split."""
    sequence_parallel: bool
    """Divide by position in the text what is not split otherwise: norms, dropout and what is kept for backward."""
    zero_stage: Literal[0, 1]
    """What the data axis divides: nothing, or the optimizer's state."""
    boundaries: tuple[Count, ...] | None
    """Number of the first block of each virtual stage but the first; null: cut so that the costliest stage costs least."""
    schedule: Schedule
    """Order of a rank's work, as of ``strategy=pipeline``."""
    microbatches: Count | None
    """Micro-batches a step where there are stages, in the place of ``train.accumulation``; null: the smallest divisor of a replica's
    batch that is at least twice the stages, else that batch."""
    chunks: Count | None
    """Virtual stages a rank; null: 2 where the schedule interleaves, else 1."""
    bucket_mb: Positive
    """Gradients travel along the data axis in buckets of this many MiB."""


Strategy = Annotated[Single | AllReduce | ParameterServer | Pipeline | Tensor | Hybrid, Field(discriminator="name")]
