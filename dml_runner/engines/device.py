"""What engines of ranks with a model do with their device: number formats, batches, random numbers, the bits of weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from dml_runner.layout import Precision
from dml_runner.models.base import Batch


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Inside, matrix products are taken in ``precision``, where autocast is what does that."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the engine computes; host memory may still be read from when this returns."""
    if device.type == "cpu":
        return batch
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def seed_random(seed: int, device: torch.device) -> None:
    """Begin torch's random numbers anew, on the host and the device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def bits_of(parameter: Tensor) -> Tensor:
    """A number, int64, that is equal where all bits of two fp32 tensors are: their sum as integers."""
    return parameter.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)
