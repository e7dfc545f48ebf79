"""Batch norm whose statistics are those of all ranks' micro-batches together (Ioffe & Szegedy 2015, over a divided batch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from dml_runner.comm.counter import Sent, all_reduce_bytes

CHANNELS = (0, 2, 3)
"""All dimensions but the channels of (batch, channels, height, width)."""


class BatchNorm(nn.Module):
    """Batch norm over images, equal to torch's over the whole batch, on every backend.

    Its running statistics are the same on all ranks: those of the whole batch or, where each rank normalises by its own micro-batch,
    the mean over the ranks. Where its weights are not trained, they stay as they are, and are what it normalises by.

    Args:
        channels: of an image.
        synchronise: whether statistics are taken over all ranks, where there are several.

    Attributes:
        sent: where the bytes it sends are counted; None: nowhere.
        group: the ranks whose batch it is; None: all.
        alone: whether it is this rank's batch, whoever else is there.
    """

    eps = 1e-5
    momentum = 0.1
    sent: Sent | None = None
    group: dist.ProcessGroup | None = None
    run: Pass | None = None
    alone = False

    def __init__(self, channels: int, synchronise: bool) -> None:
        super().__init__()
        self.synchronise = synchronise
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))  # nothing here reads it; published files hold it

    def fill_buffers(self) -> None:
        """As before the first batch: mean 0, variance 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1.0)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        learns = self.training and self.weight.requires_grad
        several = learns and not self.alone and dist.is_initialized() and dist.get_world_size(self.group) > 1
        again = self.run is not None and self.run.again
        if learns and not again:
            self.num_batches_tracked += 1
        if several and self.synchronise:
            normalised: Tensor = self._over_ranks(x, again)
            return normalised
        mean, variance = self.running_mean, self.running_var
        if several or (learns and again):  # backward wants what it was given as it was then; a second run moves nothing
            mean, variance = mean.clone(), variance.clone()
        out = batch_norm(x, mean, variance, self.weight, self.bias, learns, self.momentum, self.eps)
        if several and not again:
            self._agree(mean, variance)
        return out

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a sum over ranks inside an autograd function cannot be traced
    def _over_ranks(self, x: Tensor, again: bool) -> Any:
        onward = self._sum if self.run is None else partial(self.run.over_ranks, self._sum)
        made = _Synchronised.apply(x, self.weight, self.bias, self.eps, onward, self._sum)  # type: ignore[no-untyped-call]
        out, mean, variance, count = made
        if again:
            return out
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)).type_as(variance), self.momentum)
        return out

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _agree(self, mean: Tensor, variance: Tensor) -> None:
        both = torch.stack((mean, variance))
        self._sum(both)
        self.running_mean.copy_(both[0] / dist.get_world_size(self.group))
        self.running_var.copy_(both[1] / dist.get_world_size(self.group))

    def _sum(self, values: Tensor) -> None:
        dist.all_reduce(values, group=self.group)
        if self.sent is not None:
            self.sent.add(all_reduce_bytes(values.nbytes, dist.get_world_size(self.group)))


def connect(module: nn.Module, sent: Sent, group: dist.ProcessGroup | None, alone: bool = False) -> None:
    """Have every batch norm in ``module`` talk within ``group`` (None: to all ranks; ``alone``: to nobody), and count its bytes."""
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.sent, part.group, part.alone = sent, group, alone


class Pass:
    """One of two runs of the same batch norms over the same images, of which the second is for backward alone.

    In the second their running statistics stay as they are, and ranks do not talk: sums over ranks are those of the first. May be entered
    more than once, one time after the other.

    Args:
        norms: the batch norms.
        sums: what the first run learned of other ranks; the same list for both.
        again: whether this is the second.
    """

    def __init__(self, norms: Sequence[BatchNorm], sums: list[Tensor], again: bool) -> None:
        self.again = again
        self._norms, self._sums, self._taken = norms, sums, 0

    def __enter__(self) -> None:
        self._taken = 0
        for norm in self._norms:
            norm.run = self

    def __exit__(self, *_: object) -> None:
        for norm in self._norms:
            norm.run = None

    def over_ranks(self, talk: Callable[[Tensor], None], values: Tensor) -> None:
        """Sum ``values`` over the ranks in place, by ``talk`` in the first run."""
        if self.again:
            values.copy_(self._sums[self._taken])
            self._taken += 1
        else:
            talk(values)
            self._sums.append(values.clone())


class _Synchronised(torch.autograd.Function):
    """Normalises by the mean and variance over all ranks; both ways one sum over the ranks of two numbers a channel.

    The ranks' sums are added in fp64: a variance as the difference of two sums needs more digits than fp32 has.
    """

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, onward: Callable[[Tensor], None], back: Callable[[Tensor], None]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(normalised, mean, variance, values a channel over all ranks)."""
        wide, values = x.type_as(weight), x.numel() // x.shape[1]
        mine = wide.mean(CHANNELS)
        spread = (wide - mine[:, None, None]).square().sum(CHANNELS).double()
        total = mine.double() * values
        sums = torch.cat((total, spread + total * mine, total.new_tensor([values])))
        onward(sums)
        count = sums[-1]
        exact, squares = sums[:-1].view(2, -1) / count
        mean, variance = exact.type_as(weight), (squares - exact.square()).clamp(min=0)
        scale = (variance + eps).rsqrt().type_as(weight)
        context.save_for_backward(x, weight, mean, scale, count)
        context.back = back
        out = torch.addcmul(bias[:, None, None], wide - mean[:, None, None], (weight * scale)[:, None, None])
        statistics = mean, variance.type_as(weight), count
        context.mark_non_differentiable(*statistics)
        return out.type_as(x), *statistics

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Gradients of x, weight and bias; those of the weights are this rank's own."""
        x, weight, mean, scale, count = context.saved_tensors
        wide = gradient.type_as(weight)
        centred = (x.type_as(weight) - mean[:, None, None]) * scale[:, None, None]
        bias_gradient = wide.sum(CHANNELS)
        weight_gradient = (wide * centred).sum(CHANNELS)
        sums = torch.cat((bias_gradient, weight_gradient)).double()
        context.back(sums)
        constant, along = (sums / count).type_as(weight).view(2, -1)
        inner = wide - constant[:, None, None] - centred * along[:, None, None]
        return (inner * (weight * scale)[:, None, None]).type_as(gradient), weight_gradient, bias_gradient, None, None, None
