"""The torch engine: plain PyTorch modules, autograd and optimizers, replicas by DistributedDataParallel."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed
from dml_runner.comm.world import World
from dml_runner.engines.base import StepReport, Weigh, Weighed
from dml_runner.engines.device import autocast
from dml_runner.engines.whole_model import WholeModel
from dml_runner.engines.wire_memory import Remembered
from dml_runner.errors import Problem
from dml_runner.layout import Layout
from dml_runner.models.base import Batch, Model
from dml_runner.optim.parts.clip import UNCHANGED, clip, diverged, norm
from dml_runner.optim.parts.step import advance, drop, materialise, state_of
from dml_runner.parallel.replicate import Replicas


def missing(layout: Layout) -> Iterator[Problem]:
    """What this engine cannot do of ``layout``."""
    if layout.precision == "fp16":
        yield Problem("train.precision", "the torch engine has no loss scaling yet", got="fp16", allowed="fp32, tf32, bf16")
    if layout.precision == "tf32" and layout.device == "cpu":
        yield Problem("train.precision", "only NVIDIA GPUs since Ampere compute in tf32", got="tf32 on a CPU", allowed="fp32, bf16")


class TorchEngine(WholeModel):
    """One rank of a job whose ranks all hold the whole model and all update it."""

    def __init__(
        self,
        model: Model,
        replicas: Replicas | None,
        optimizer: torch.optim.Optimizer,
        layout: Layout,
        world: World,
        seed: int,
        clip_norm: float | None,
    ) -> None:
        super().__init__(model, replicas, layout, world, seed)
        self.optimizer = optimizer
        self._replicas = replicas
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._clip_norm = clip_norm
        self._layout = layout
        self._remembered = None
        self._carries = replicas is not None and replicas.carries and not self._forward_changes and self._streams is None
        if replicas:
            replicas.settle(self._settle)
            self._remembered = Remembered(replicas, world.rank, [layout.mesh.size, *(size for _, size in sorted(replicas.buckets.items()))])

    def step(self, number: int, batches: Sequence[Batch], weight: Weigh, rate: float) -> StepReport:
        """One update; see ``Engine.step``."""
        started = time.perf_counter()
        self._begin(number)
        if self._replicas and self._layout.is_local(number):
            return self._local_step(self._replicas, number, batches, weight, rate, started)
        known = weight.known if self._carries and len(batches) == 1 else None
        if known is None:
            weight.ask()
        elif self._replicas:
            self._replicas.wish = weight.wish
        try:
            loss_sum = self._backward(batches, weight if known is None else Weighed(known))
        except RuntimeError:
            if self._replicas:
                self._replicas.check()
            raise
        waited_from = self._replicas.handed_over_at if self._replicas else 0.0
        waited = max(0.0, time.perf_counter() - waited_from) if waited_from else 0.0
        if known is not None:
            self._hear(weight)
        computed = time.perf_counter()
        length = self._update(rate)
        return StepReport(loss_sum, lambda: length, computed - started - waited, waited, time.perf_counter() - computed)

    def _differentiate(self, total: Tensor, scale: Tensor) -> None:
        if self._replicas:
            self._replicas.backward(total, scale)
        else:
            total.backward(scale)

    def _hear(self, weight: Weigh) -> None:
        """Take the wishes that came with the gradients; whoever ends here has changed nothing yet."""
        assert self._replicas is not None
        try:
            weight.hear(self._replicas.wished())
        except BaseException:
            drop(self._parameters)
            raise

    def _local_step(
        self, replicas: Replicas, number: int, batches: Sequence[Batch], weight: Weigh, rate: float, started: float
    ) -> StepReport:
        """Update this rank's weights by its own gradient, the mean over its share; then, when that is due, average all ranks' weights."""
        with replicas.accumulate():
            loss_sum = self._backward(batches, lambda: weight() / self._world.size)
        computed = time.perf_counter()
        length = self._update(rate)
        updated = time.perf_counter()
        if self._layout.agreed(number):
            replicas.average()
        return StepReport(loss_sum, lambda: length, computed - started, time.perf_counter() - updated, updated - computed)

    def _update(self, rate: float) -> float:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        length = norm(gradients)
        if not math.isfinite(length):
            drop(self._parameters)
            raise diverged(length, UNCHANGED)
        if self._clip_norm is not None:
            clip(gradients, length, self._clip_norm)
        advance(self.optimizer, rate)
        drop(self._parameters)
        return length

    def state(self) -> Iterator[Piece]:
        """Weights, buffers and optimizer state; tensors are dealt to the ranks by size, so that each writes a share."""
        for index, (name, tensor) in enumerate(self._named_state()):
            if index % self._layout.mesh.size == self._world.rank:
                yield Piece(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor)
        if self._streams:
            yield from self._streams.pieces()
        if self._remembered:
            yield from self._remembered.pieces()

    def restore(self, step: Committed) -> None:
        """Take every tensor of ``state`` from a verified checkpoint."""
        materialise(self.optimizer, self._parameters)
        with torch.no_grad():
            for name, tensor in self._named_state():
                tensor.copy_(step.read(name))
        if self._streams:
            self._streams.restore(step)
        if self._remembered:
            self._remembered.restore(step)

    def close(self) -> None:
        """Nothing to free."""

    def _named_state(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"model/{name}", tensor) for name, tensor in self.model.state_dict(keep_vars=False).items())
        for name, parameter in self.model.named_parameters():
            yield from ((f"optimizer/{key}/{name}", value) for key, value in state_of(self.optimizer, parameter))

    def _settle(self, module: nn.Module) -> None:
        kept = [buffer.clone() for buffer in self.model.buffers()]
        batch = {key: value.to(self._device) for key, value in self.model.example(1).items()}
        with autocast(self._device, self._precision):
            total, _ = self.model.loss(module(batch), batch)
        assert self._replicas is not None, "only replicas are settled"
        self._replicas.backward(total)
        for buffer, before in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(before)
