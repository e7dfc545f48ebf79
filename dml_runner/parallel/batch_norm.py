"""Batch norm whose statistics are those of all ranks' micro-batches together (Ioffe & Szegedy 2015, over a divided batch)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm

CHANNELS = (0, 2, 3)
"""All dimensions but the channels of (batch, channels, height, width)."""


class BatchNorm(nn.Module):
    """Batch norm over images, equal to torch's over the whole batch, on every backend.

    Where its weights are not trained, the running statistics stay as they are too, and are what it normalises by.

    Args:
        channels: of an image.
        synchronise: whether statistics are taken over all ranks, where there are several.
    """

    eps = 1e-5
    momentum = 0.1

    def __init__(self, channels: int, synchronise: bool) -> None:
        super().__init__()
        self.synchronise = synchronise
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def fill_buffers(self) -> None:
        """As before the first batch: mean 0, variance 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        learns = self.training and self.weight.requires_grad
        if learns and self.synchronise and dist.is_initialized() and dist.get_world_size() > 1:
            out, mean, variance, count = _Synchronised.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_((variance * (count / (count - 1))).type_as(self.running_var), self.momentum)
            normalised: Tensor = out
            return normalised
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, learns, self.momentum, self.eps)


class _Synchronised(torch.autograd.Function):
    """Normalises by the mean and variance over all ranks; both ways one sum over the ranks of two numbers a channel."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(normalised, mean, variance, values a channel over all ranks)."""
        wide = x.double()  # a variance as the difference of two sums needs more digits than fp32 has
        sums = torch.cat((wide.sum(CHANNELS), wide.square().sum(CHANNELS), wide.new_tensor([x.numel() / x.shape[1]])))
        dist.all_reduce(sums)
        total, squares = sums[:-1].view(2, -1)
        count = sums[-1]
        mean, variance = total / count, (squares / count - (total / count).square()).clamp(min=0)
        scale = (variance + eps).rsqrt().type_as(weight)
        centred = (x.type_as(weight) - mean.type_as(weight)[:, None, None]) * scale[:, None, None]
        context.save_for_backward(centred, weight, scale, count)
        out = centred * weight[:, None, None] + bias[:, None, None]
        statistics = mean.type_as(weight), variance.type_as(weight), count
        context.mark_non_differentiable(*statistics)
        return out.type_as(x), *statistics

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of x, weight and bias; those of the weights are this rank's own."""
        centred, weight, scale, count = context.saved_tensors
        narrow, gradient = gradient.dtype, gradient.type_as(weight)
        bias_gradient = gradient.sum(CHANNELS)
        weight_gradient = (gradient * centred).sum(CHANNELS)
        sums = torch.cat((bias_gradient, weight_gradient)).double()
        dist.all_reduce(sums)
        mean, along = (sums / count).type_as(gradient).view(2, -1)
        inner = gradient - mean[:, None, None] - centred * along[:, None, None]
        return (inner * (weight * scale)[:, None, None]).to(narrow), weight_gradient, bias_gradient, None
