"""What every engine of a rank that holds the whole model shares: forward, backward, evaluation, streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dml_runner.checkpoint.read import Committed
from dml_runner.checkpoint.weights import fill
from dml_runner.comm.world import World
from dml_runner.engines.device import autocast, bits_of, on_device, seed_random
from dml_runner.engines.streams import Streams
from dml_runner.layout import Layout
from dml_runner.models.base import Batch, Guess, Model
from dml_runner.models.parts.cache import KeyValueCache


class Exchange(Protocol):
    """Where gradients go while backward computes them."""

    @property
    def module(self) -> nn.Module:
        """What is called in place of the model in training."""

    def accumulate(self) -> AbstractContextManager[None]:
        """Inside, backward adds to this rank's gradients and gives nothing away."""


class WholeModel:
    """A rank that holds the whole model."""

    def __init__(self, model: Model, exchange: Exchange | None, layout: Layout, world: World, seed: int) -> None:
        data_rank = layout.mesh.data_rank(world.rank)
        self.model = model
        self._exchange = exchange
        self._module: nn.Module = model if exchange is None else exchange.module
        self._device = world.device
        self._world = world
        self._seed = seed * 1_000_003 + data_rank
        self._precision = layout.precision
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._forward_changes = any(name not in weights for name in model.state_dict())  # running statistics
        self._scale: tuple[float, Tensor] = (1.0, torch.ones((), device=world.device))
        shape = model.state_shape()
        self._streams = None if shape is None else Streams(shape, layout.batch, data_rank, world.device)

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Guess]:
        """(summed loss, weight, what was guessed) of a held-out batch, without gradients."""
        batch = on_device(batch, self._device)
        with torch.no_grad(), autocast(self._device, self._precision):
            output = self._evaluating()(batch)
            return *self.model.loss(output, batch), self.model.guess(output, batch)

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """The model's output for a batch, without gradients; see ``Engine.forward``."""
        with torch.no_grad(), autocast(self._device, self._precision):
            module, batch = self._evaluating(), on_device(batch, self._device)
            if cache is None:
                return module(batch)  # type: ignore[no-any-return]
            return module.forward(batch, cache)  # type: ignore[no-any-return]  # not what train.compile made: lengths differ at each call

    def fingerprint(self) -> tuple[list[str], Tensor]:
        """(parameter names, sum of each one's bits as integers): equal on ranks whose weights are equal."""
        named = list(self.model.named_parameters())
        return [name for name, _ in named], torch.stack([bits_of(p) for _, p in named]).cpu()

    def times(self) -> tuple[Tensor, float]:
        """See ``Engine.times``: there is no schedule."""
        return torch.empty(0, 2, dtype=torch.float64), 0.0

    def load_weights(self, step: Committed) -> None:
        """Take weights and buffers alone from a verified checkpoint; see ``Engine.load_weights``."""
        fill(self.model.state_dict(), step)

    def _begin(self, number: int) -> None:
        """Step ``number`` begins."""
        if not self.model.training:
            self.model.train()
        self._seed_dropout(number)

    def _seed_dropout(self, number: int) -> None:
        """Random numbers of a step depend on the seed, the step and the data rank alone, so there is no random state to save."""
        seed_random(self._seed + 7_919 * number, self._device)

    def _backward(self, batches: Sequence[Batch], weight: Callable[[], float]) -> Tensor:
        """Gradients of all micro-batches; the weight is waited for behind the first forward, where a forward changes nothing by itself."""
        scale = self._scale_of(weight()) if self._forward_changes else None
        loss_sum: Tensor | None = None
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            with self._exchange.accumulate() if self._exchange and not last else nullcontext():
                output, total = self._forward(micro, batch)
                scale = self._scale_of(weight()) if scale is None else scale
                if self._streams:
                    self._streams.keep(micro, self.model.state_of(output))
                self._differentiate(total, scale)
            loss_sum = self._add(loss_sum, total.detach())
        assert loss_sum is not None, "a rank that trains has batches"
        return loss_sum

    def _differentiate(self, total: Tensor, scale: Tensor) -> None:
        total.backward(scale)

    @staticmethod
    def _add(total: Tensor | None, more: Tensor) -> Tensor:
        return more if total is None else total + more

    def _forward(self, micro: int, batch: Batch) -> tuple[Any, Tensor]:
        """(output, summed loss) of a micro-batch."""
        batch = on_device(batch, self._device)
        if self._streams:
            batch = {**batch, "state": self._streams.state(micro)}
        with autocast(self._device, self._precision):
            output = self._module(batch)
            total, _ = self.model.loss(output, batch)
        return output, total

    def _scale_of(self, weight: float) -> Tensor:
        if self._scale[0] != weight:
            self._scale = (weight, torch.tensor(1.0 / weight, device=self._device))
        return self._scale[1]

    def _evaluating(self) -> nn.Module:
        if self.model.training:
            self.model.eval()
        return self.model
