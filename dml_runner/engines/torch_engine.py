"""The torch engine: plain PyTorch modules, autograd and optimizers, replicas by DistributedDataParallel."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed
from dml_runner.checkpoint.weights import fill
from dml_runner.comm.world import World
from dml_runner.engines.base import StepReport
from dml_runner.engines.streams import Streams
from dml_runner.errors import Diverged, Problem
from dml_runner.layout import Layout
from dml_runner.models.base import Batch, Guess, Model
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.optim.parts.clip import clip, norm
from dml_runner.parallel.replicate import Replicas


def missing(layout: Layout) -> Iterator[Problem]:
    """What this engine cannot do of ``layout``."""
    if layout.precision == "fp16":
        yield Problem("train.precision", "the torch engine has no loss scaling yet", got="fp16", allowed="fp32, tf32, bf16")
    if layout.precision == "tf32" and layout.device == "cpu":
        yield Problem("train.precision", "only NVIDIA GPUs since Ampere compute in tf32", got="tf32 on a CPU", allowed="fp32, bf16")


class TorchEngine:
    """One rank of a job whose ranks all hold the whole model."""

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
        self.model = model
        self.optimizer = optimizer
        self._replicas = replicas
        self._module: nn.Module = replicas.module if replicas else model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = world.device
        self._world = world
        self._seed = seed * 1_000_003 + layout.mesh.data_rank(world.rank)
        self._clip_norm = clip_norm
        self._bf16 = layout.precision == "bf16"
        self._scale: tuple[float, Tensor] = (1.0, torch.ones((), device=world.device))
        shape = model.state_shape()
        self._streams = None if shape is None else Streams(shape, layout.batch, layout.mesh.data_rank(world.rank), world.device)
        if replicas:
            replicas.settle(self._settle)

    def step(self, number: int, batches: Sequence[Batch], weight: float, rate: float) -> StepReport:
        """One update; see ``Engine.step``."""
        started = time.perf_counter()
        if not self.model.training:
            self.model.train()
        self._seed_dropout(number)
        loss_sum = self._backward(batches, weight)
        waited_from = self._replicas.handed_over_at if self._replicas else 0.0
        finished = time.perf_counter()
        waited = max(0.0, finished - waited_from) if waited_from else 0.0
        length = self._update(rate)
        return StepReport(loss_sum, length, finished - started - waited, waited, time.perf_counter() - finished)

    def _seed_dropout(self, number: int) -> None:
        """Random numbers of a step depend on the seed, the step and the data rank alone, so there is no random state to save."""
        seed = self._seed + 7_919 * number
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _backward(self, batches: Sequence[Batch], weight: float) -> Tensor:
        scale = self._scale_of(weight)
        loss_sum: Tensor | None = None
        for micro, batch in enumerate(batches[:-1]):
            with self._replicas.accumulate() if self._replicas else nullcontext():
                loss_sum = self._add(loss_sum, self._loss_backward(micro, batch, scale))
        return self._add(loss_sum, self._loss_backward(len(batches) - 1, batches[-1], scale))

    @staticmethod
    def _add(total: Tensor | None, more: Tensor) -> Tensor:
        return more if total is None else total + more

    def _loss_backward(self, micro: int, batch: Batch, scale: Tensor) -> Tensor:
        batch = self._on_device(batch)
        if self._streams:
            batch = {**batch, "state": self._streams.state(micro)}
        with self._autocast():
            output = self._module(batch)
            total, _ = self.model.loss(output, batch)
        if self._streams:
            self._streams.keep(micro, self.model.state_of(output))
        total.backward(scale)
        return total.detach()

    def _scale_of(self, weight: float) -> Tensor:
        if self._scale[0] != weight:
            self._scale = (weight, torch.tensor(1.0 / weight, device=self._device))
        return self._scale[1]

    def _update(self, rate: float) -> float:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        length = norm(gradients)
        if not math.isfinite(length):
            self._drop_gradients()
            raise Diverged(Problem("loss", "the gradient is not finite", got=str(length), hint="the weights are as before this step"))
        if self._clip_norm is not None:
            clip(gradients, length, self._clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self._drop_gradients()
        return length

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Guess]:
        """(summed loss, weight, what was guessed) of a held-out batch, without gradients."""
        batch = self._on_device(batch)
        with torch.no_grad(), self._autocast():
            output = self._evaluating()(batch)
            return *self.model.loss(output, batch), self.model.guess(output, batch)

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """The model's output for a batch, without gradients; see ``Engine.forward``."""
        with torch.no_grad(), self._autocast():
            module, batch = self._evaluating(), self._on_device(batch)
            if cache is None:
                return module(batch)  # type: ignore[no-any-return]
            return module.forward(batch, cache)  # type: ignore[no-any-return]  # not what train.compile made: lengths differ at each call

    def fingerprint(self) -> tuple[list[str], Tensor]:
        """(parameter names, sum of each one's bits as integers): equal on ranks whose weights are equal."""
        named = list(self.model.named_parameters())
        sums = [p.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for _, p in named]
        return [name for name, _ in named], torch.stack(sums).cpu()

    def state(self) -> Iterator[Piece]:
        """Weights, buffers and optimizer state; tensors are dealt to the ranks by size, so that each writes a share."""
        for index, (name, tensor) in enumerate(self._named_state()):
            if index % self._world.size == self._world.rank:
                yield Piece(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor)
        if self._streams:
            yield from self._streams.pieces()

    def restore(self, step: Committed) -> None:
        """Take every tensor of ``state`` from a verified checkpoint."""
        self._materialise_optimizer()
        with torch.no_grad():
            for name, tensor in self._named_state():
                tensor.copy_(step.read(name))
        if self._streams:
            self._streams.restore(step)

    def load_weights(self, step: Committed) -> None:
        """Take weights and buffers alone from a verified checkpoint; see ``Engine.load_weights``."""
        fill(self.model.state_dict(), step)

    def close(self) -> None:
        """Nothing to free."""

    def _named_state(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"model/{name}", tensor) for name, tensor in self.model.state_dict(keep_vars=False).items())
        for name, parameter in self.model.named_parameters():
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if isinstance(value, Tensor):
                    yield f"optimizer/{key}/{name}", value

    def _materialise_optimizer(self) -> None:
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _settle(self, module: nn.Module) -> None:
        kept = [buffer.clone() for buffer in self.model.buffers()]
        batch = {key: value.to(self._device) for key, value in self.model.example(1).items()}
        with self._autocast():
            total, _ = self.model.loss(module(batch), batch)
        total.backward()
        for buffer, before in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(before)

    def _evaluating(self) -> nn.Module:
        if self.model.training:
            self.model.eval()
        return self.model

    def _autocast(self) -> AbstractContextManager[None]:
        if self._bf16:
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _on_device(self, batch: Batch) -> Batch:
        if self._device.type == "cpu":
            return batch
        return {key: value.to(self._device, non_blocking=True) for key, value in batch.items()}
