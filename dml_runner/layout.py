"""Layout: what a strategy decides. Named mesh axes, rank arithmetic and batch arithmetic, in ints and words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dml_runner.errors import PlanError, Problem
from dml_runner.schema.quantize import Wire
from dml_runner.schema.recompute import Kept
from dml_runner.schema.strategy import Algorithm, Consistency, Schedule

Synchronisation = Literal["none", "all_reduce", "servers"]
Role = Literal["worker", "server", "helper"]
Precision = Literal["fp32", "tf32", "fp16", "bf16"]
Axis = Literal["pipeline", "data", "tensor"]


@dataclass(frozen=True)
class Mesh:
    """The ranks as a grid of named axes, ``pipeline x data x tensor``, tensor running fastest."""

    pipeline: int = 1
    data: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        """Ranks in the grid."""
        return self.pipeline * self.data * self.tensor

    def data_rank(self, rank: int) -> int:
        """Position of ``rank`` on the data axis: 0 to data - 1."""
        return rank // self.tensor % self.data

    def pipeline_rank(self, rank: int) -> int:
        """Position of ``rank`` on the pipeline axis: 0 to pipeline - 1."""
        return rank // (self.tensor * self.data)

    def tensor_rank(self, rank: int) -> int:
        """Position of ``rank`` on the tensor axis: 0 to tensor - 1."""
        return rank % self.tensor

    def rank_at(self, pipeline: int, data: int, tensor: int) -> int:
        """The rank at these positions."""
        return (pipeline * self.data + data) * self.tensor + tensor

    def along(self, axis: Axis, rank: int) -> tuple[int, ...]:
        """The ranks that differ from ``rank`` on ``axis`` alone, itself included, in the axis's order."""
        at = {"pipeline": self.pipeline_rank(rank), "data": self.data_rank(rank), "tensor": self.tensor_rank(rank)}
        return tuple(self.rank_at(**{**at, axis: place}) for place in range(getattr(self, axis)))


@dataclass(frozen=True)
class Batch:
    """How the samples of one update are divided: global = micro x accumulation x data ranks."""

    global_batch: int
    micro_batch: int
    accumulation: int
    data_ranks: int


def divide_batch(global_batch: int | None, micro_batch: int | None, accumulation: int | None, data_ranks: int) -> Batch:
    """Complete the words of the user to a batch.

    Two of the three numbers give the third; one alone means accumulation 1 (only ``accumulation``: micro-batch 8);
    none: micro-batch 8, accumulation 1.

    Raises:
        PlanError: the numbers contradict each other, or the data ranks do not divide the global batch.
    """
    if global_batch is None:
        micro, times = micro_batch or 8, accumulation or 1
        return Batch(micro * times * data_ranks, micro, times, data_ranks)
    if micro_batch is not None and accumulation is not None:
        product = micro_batch * accumulation * data_ranks
        if product != global_batch:
            raise PlanError(
                Problem(
                    "train.global_batch",
                    f"micro_batch {micro_batch} x accumulation {accumulation} x data ranks {data_ranks} = {product}",
                    got=str(global_batch),
                    allowed=str(product),
                    hint="leave one of the three out",
                )
            )
        return Batch(global_batch, micro_batch, accumulation, data_ranks)
    known = micro_batch or accumulation or 1
    share, rest = divmod(global_batch, known * data_ranks)
    if rest:
        raise PlanError(_not_divided(global_batch, micro_batch, accumulation, data_ranks))
    if micro_batch is not None:
        return Batch(global_batch, micro_batch, share, data_ranks)
    return Batch(global_batch, share, known, data_ranks)


def _not_divided(global_batch: int, micro_batch: int | None, accumulation: int | None, data_ranks: int) -> Problem:
    factors = [f"data ranks {data_ranks}"]
    factors += [f"micro_batch {micro_batch}"] if micro_batch else []
    factors += [f"accumulation {accumulation}"] if accumulation else []
    unit = (micro_batch or accumulation or 1) * data_ranks
    below, above = global_batch // unit * unit, -(-global_batch // unit) * unit
    nearest = below if below and global_batch - below <= above - global_batch else above
    return Problem(
        "train.global_batch",
        f"{' x '.join(factors)} = {unit} does not divide it",
        got=str(global_batch),
        allowed=f"a multiple of {unit}",
        hint=f"the nearest that works is {nearest}",
    )


@dataclass(frozen=True)
class Servers:
    """Who holds the weights where workers do not.

    Attributes:
        count: servers; each holds an equal share.
        dedicated: whether they are ranks of their own, after the workers; else server ``i`` lives in worker ``i``.
        consistency: what a worker waits for.
        staleness: pushes a worker may be ahead of the slowest one (``ssp``).
        replicas: copies of each share in another server's memory.
        replicate_every: steps between two such copies.
    """

    count: int
    dedicated: bool
    consistency: Consistency
    staleness: int
    replicas: int = 0
    replicate_every: int = 10


@dataclass(frozen=True)
class Stages:
    """How the blocks of a model are cut into virtual stages, and in which order they compute.

    Virtual stage v lives on pipeline rank v % stages. Micro-batches are counted by ``Batch.accumulation``.

    Attributes:
        schedule: the order in which a rank computes.
        chunks: virtual stages a rank.
        boundaries: number of the first block of each virtual stage but the first, which has the stem; the last has the head. Empty
            while the cut is open.
    """

    schedule: Schedule
    chunks: int
    boundaries: tuple[int, ...]


@dataclass(frozen=True)
class Recomputed:
    """What is computed again in backward, so that it need not be kept.

    Attributes:
        kept: ``none``: all is kept (nothing is recomputed); ``inputs``: what enters every ``every``-th block; ``products``: that, and the
            results of matrix products; ``open``: not decided yet.
        every: blocks that are recomputed together.
        offload: whether what is kept waits in host memory.
        budget_gb: GB a device may hold, by which ``open`` is decided; None: what the device has.
    """

    kept: Kept
    every: int = 1
    offload: bool = False
    budget_gb: float | None = None


@dataclass(frozen=True)
class Layout:
    """One way to execute a job: what every later part reads, and nobody edits.

    Attributes:
        strategy: the strategy's name.
        engine: the engine that executes it.
        mesh: the grid of worker ranks.
        nodes: hosts.
        device: ``cpu`` or ``cuda``.
        backend: of the process group: ``gloo`` or ``nccl``.
        batch: how one update's samples are divided.
        synchronisation: how gradients of the data axis meet.
        bucket_mb: MiB of gradients that travel together.
        precision: number format of matrix products.
        steps: number of the last update.
        algorithm: how ranks sum.
        wire: form of gradients between ranks.
        wire_rank: rank of the matrices a ``powersgd`` wire sends.
        local_steps: steps between two averages of the weights; 1: gradients are summed in every step.
        local_after: steps with summed gradients before ``local_steps`` begins to count.
        servers: who holds the weights; None: the workers.
        helpers: ranks that only sum gradients.
        stages: how the model is cut along the pipeline axis; None: it is whole.
        sequence_parallel: whether what the tensor axis does not divide is divided by position in the text.
        zero_stage: what is divided over the data axis: 0 nothing, 1 the optimizer's state.
        recompute: what is not kept between forward and backward.
    """

    strategy: str
    engine: str
    mesh: Mesh
    nodes: int
    device: str
    backend: str
    batch: Batch
    synchronisation: Synchronisation
    bucket_mb: float
    precision: Precision
    steps: int
    algorithm: Algorithm = "backend"
    wire: Wire = "none"
    wire_rank: int = 4
    local_steps: int = 1
    local_after: int = 0
    servers: Servers | None = None
    helpers: int = 0
    stages: Stages | None = None
    sequence_parallel: bool = False
    zero_stage: int = 0
    recompute: Recomputed = Recomputed("none")

    @property
    def divided(self) -> bool:
        """Whether a rank holds a part of the model or of its optimizer's state only."""
        return self.mesh.pipeline > 1 or self.mesh.tensor > 1 or self.zero_stage > 0 or self.stages is not None

    def speaks(self, rank: int) -> bool:
        """Whether ``rank`` tells what its data rank's batch weighs; others at its position on the data axis have the same batch."""
        return self.role(rank) == "worker" and self.mesh.pipeline_rank(rank) == 0 and self.mesh.tensor_rank(rank) == 0

    @property
    def world_size(self) -> int:
        """All ranks: workers first, then dedicated servers, then helpers."""
        return self.mesh.size + self._server_ranks + self.helpers

    @property
    def _server_ranks(self) -> int:
        return self.servers.count if self.servers is not None and self.servers.dedicated else 0

    @property
    def lockstep(self) -> bool:
        """Whether all ranks take each step together."""
        return self.servers is None or self.servers.consistency == "bsp"

    def role(self, rank: int) -> Role:
        """What ``rank`` is for."""
        if rank < self.mesh.size:
            return "worker"
        return "server" if rank < self.mesh.size + self._server_ranks else "helper"

    def data_rank(self, rank: int) -> int | None:
        """Position of ``rank`` on the data axis; None: it trains on nothing."""
        return self.mesh.data_rank(rank) if self.role(rank) == "worker" else None

    def server_rank(self, server: int) -> int:
        """The rank in which server ``server`` lives."""
        assert self.servers is not None
        return server + (self.mesh.size if self.servers.dedicated else 0)

    def is_local(self, step: int) -> bool:
        """Whether each rank takes ``step`` by itself."""
        return self.local_steps > 1 and step > self.local_after

    def agreed(self, step: int) -> bool:
        """Whether all workers hold the same weights after ``step``; they do after the last."""
        return not self.is_local(step) or (step - self.local_after) % self.local_steps == 0 or step >= self.steps

    @property
    def savers(self) -> int:
        """Ranks that write a share of each checkpoint."""
        return sum(self.saver(rank) is not None for rank in range(self.world_size))

    def saver(self, rank: int) -> int | None:
        """Position of ``rank`` among those that write a share of each checkpoint; None: it may die and nothing is lost."""
        if self.servers is None or self.lockstep:
            return rank
        if not self.servers.dedicated:
            return rank if rank < self.servers.count else None
        return 0 if rank == 0 else rank - self.mesh.size + 1 if self.role(rank) == "server" else None


def for_evaluation(layout: Layout) -> Layout:
    """The same without whoever takes part in updates alone."""
    return replace(layout, servers=None, helpers=0, zero_stage=0, recompute=Recomputed("none"))
