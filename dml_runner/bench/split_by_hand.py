"""The scripts that ``dml bench split`` is compared with: a pipeline by torch.distributed.pipelining, and layers split by hand.

They start from the same weights, read the same samples in the same order and use the same optimizer. They log nothing and look at
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional as fn

from dml_runner import data as data_room
from dml_runner import models, optim
from dml_runner.bench.pool import Job
from dml_runner.bench.ranks import Place
from dml_runner.facts import task_of
from dml_runner.models.base import initialise
from dml_runner.models.gpt import Gpt

Tell = Callable[[Tensor], None]
"""Told the mean loss of an update, on the ranks that know it."""


def by_pipelining(job: Job, place: Place, tell: Tell) -> None:
    """1F1B of torch's own: a stage a rank, cut where the job says."""
    cut = job.layout.stages.boundaries[0] if job.layout.stages else 0
    model, last = _model(job), place.rank == place.size - 1
    stage = Stage(model, model.blocks[cut:] if last else model.blocks[:cut], last)
    optimizer = _optimizer(job, stage)
    tokens = job.layout.batch.global_batch * job.facts.seq_len

    def loss_of(scores: Tensor, targets: Tensor) -> Tensor:
        return fn.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum") / tokens

    pipe = PipelineStage(stage, place.rank, place.size, torch.device("cpu"))
    schedule = Schedule1F1B(pipe, job.layout.batch.accumulation, loss_fn=loss_of, scale_grads=False)
    for inputs, targets in _batches(job):
        losses: list[Tensor] = []
        if last:
            schedule.step(target=targets, losses=losses)
            tell(torch.stack(losses).sum())
        else:
            schedule.step(inputs)
        optimizer.step()
        optimizer.zero_grad()


class Stage(nn.Module):
    """A half of the model: token ids to what the second half takes, or that to scores."""

    def __init__(self, model: Gpt, blocks: nn.ModuleList, last: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.tokens = None if last else model.tokens
        self.positions = None if last else model.positions
        self.norm = model.norm if last else None
        self.output = model.output if last else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length) ids, or (batch, length, hidden), -> (batch, length, hidden) or scores."""
        if self.tokens is not None and self.positions is not None:
            x = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x, {})
        return x if self.norm is None or self.output is None else self.output(self.norm(x))


def by_columns(job: Job, place: Place, tell: Tell) -> None:
    """Layers split as in Megatron-LM (Shoeybi et al. 2019), by ``dist.all_reduce`` inside four small autograd functions."""
    model = Columns(_model(job), place.rank, place.size)
    optimizer = _optimizer(job, model)
    tokens = job.layout.batch.global_batch * job.facts.seq_len
    for inputs, targets in _batches(job):
        loss = model(inputs, targets) / tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tell(loss.detach())


class _Copy(Function):
    """Into a column layer: gradients are summed."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient


class _Reduce(Function):
    """Out of a row layer: what the ranks have is summed."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        context.mark_dirty(x)
        return x

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


class _CrossEntropy(Function):
    """Summed over all positions, of scores of which each rank has some tokens: highest score, own score and sum are all-reduced."""

    @staticmethod
    def forward(context: Any, scores: Tensor, targets: Tensor, first: int) -> Tensor:
        highest = scores.max(dim=1).values
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        scores = scores - highest[:, None]
        place = targets - first
        others = (place < 0) | (place >= scores.shape[1])
        place = place.masked_fill(others, 0)
        own = scores.gather(1, place[:, None])[:, 0].masked_fill(others, 0.0)
        dist.all_reduce(own)
        likely = scores.exp()
        whole = likely.sum(dim=1)
        dist.all_reduce(whole)
        likely.div_(whole[:, None])
        context.save_for_backward(likely, place, others)
        return (whole.log() - own).sum()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        likely, place, others = context.saved_tensors
        likely[torch.arange(len(likely)), place] -= (~others).float()
        return likely.mul_(gradient), None, None


class ColumnsBlock(nn.Module):
    """A rank's share of a block: some heads, and some columns of the MLP."""

    def __init__(self, whole: Any, rank: int, size: int) -> None:
        super().__init__()
        self.width, self.heads = whole.attention.width, whole.attention.heads // size
        self.norm1, self.norm2 = whole.norm1, whole.norm2
        self.qkv, self.up = _column(whole.attention.qkv, rank, size, 3), _column(whole.mlp.up, rank, size, 1)
        self.out, self.down = _row(whole.attention.out, rank, size), _row(whole.mlp.down, rank, size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, hidden) -> the same."""
        entered = _Copy.apply(self.norm1(x))  # type: ignore[no-untyped-call]
        parts = self.qkv(entered).view(*x.shape[:2], 3, self.heads, self.width)
        query, key, value = parts.transpose(1, 3).unbind(dim=2)
        mixed = fn.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + (_Reduce.apply(fn.linear(mixed, self.out.weight)) + self.out.bias)  # type: ignore[no-untyped-call]
        entered = _Copy.apply(self.norm2(x))  # type: ignore[no-untyped-call]
        inner = fn.gelu(self.up(entered), approximate="tanh")
        out: Tensor = x + (_Reduce.apply(fn.linear(inner, self.down.weight)) + self.down.bias)  # type: ignore[no-untyped-call]
        return out


class Columns(nn.Module):
    """A rank's share of the whole model."""

    def __init__(self, whole: Gpt, rank: int, size: int) -> None:
        super().__init__()
        assert whole.output is not None
        self.tokens = nn.Parameter(whole.tokens.weight.detach().chunk(size)[rank].clone())
        self.output = nn.Parameter(whole.output.weight.detach().chunk(size)[rank].clone())
        self.positions, self.norm = whole.positions, whole.norm
        self.blocks = nn.ModuleList(ColumnsBlock(block, rank, size) for block in whole.blocks)
        self.first = rank * len(self.tokens)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """(batch, length) of both -> the summed loss."""
        place = ids - self.first
        others = (place < 0) | (place >= len(self.tokens))
        found = fn.embedding(place.masked_fill(others, 0), self.tokens).masked_fill(others[..., None], 0.0)
        x = _Reduce.apply(found)  # type: ignore[no-untyped-call]
        if self.positions is not None:
            x = x + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores = fn.linear(_Copy.apply(self.norm(x)), self.output).flatten(0, 1)  # type: ignore[no-untyped-call]
        loss: Tensor = _CrossEntropy.apply(scores, targets.flatten(), self.first)  # type: ignore[no-untyped-call]
        return loss


def _column(whole: nn.Linear, rank: int, size: int, matrices: int) -> nn.Linear:
    """A rank's rows of each of the ``matrices`` that stand one below the other."""
    rows = whole.out_features // size
    part = nn.Linear(whole.in_features, rows)
    with torch.no_grad():
        part.weight.copy_(whole.weight.view(matrices, size, -1, whole.in_features)[:, rank].flatten(0, 1))
        part.bias.copy_(whole.bias.view(matrices, size, -1)[:, rank].flatten())
    return part


def _row(whole: nn.Linear, rank: int, size: int) -> nn.Linear:
    """A rank's columns of the matrix, and the whole bias."""
    part = nn.Linear(whole.in_features // size, whole.out_features)
    with torch.no_grad():
        part.weight.copy_(whole.weight.chunk(size, dim=1)[rank])
        part.bias.copy_(whole.bias)
    return part


def _model(job: Job) -> Gpt:
    model = models.build(job.run.model, job.facts)
    assert isinstance(model, Gpt)
    initialise(model, job.run.seed)
    return model.train()


def _optimizer(job: Job, model: nn.Module) -> torch.optim.Optimizer:
    return optim.build(job.run.optimizer, ((p, 0, p.dim() >= 2) for p in model.parameters()))


def _batches(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets) of every update, in the runner's own order."""
    source = data_room.open_data(job.run.data, task_of(job.run.model), job.facts, job.run.seed)
    order = source.order(job.run.seed)
    for number in range(1, job.layout.steps + 1):
        batch = source.train_batch(order.step(number, job.layout.batch.global_batch))
        yield batch["inputs"], batch["targets"]
