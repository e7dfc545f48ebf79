"""Tensors that wait for backward in host memory, so that the device has room for others (Rhu et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

SMALL = 2**18
"""Bytes; to move fewer takes as long as to move none."""


@dataclass(frozen=True)
class Away:
    """A tensor's values in host memory, and where they belong."""

    values: Tensor
    device: torch.device


class Waiting:
    """Tensors stay where they are."""

    def pack(self, tensor: Tensor) -> Any:
        """The tensor."""
        return tensor

    def unpack(self, kept: Any) -> Tensor:
        """The tensor."""
        assert isinstance(kept, Tensor)
        return kept


class InHostMemory(saved_tensors_hooks):
    """Inside, what autograd keeps goes to host memory, and back when it is wanted; parameters, which stay anyway, and what is small do not.

    Copies go in the order of the device's other work, from and to pinned memory: nothing waits for them but what needs them. May be
    entered more than once.
    """

    def __init__(self) -> None:
        super().__init__(self.pack, self.unpack)

    def pack(self, tensor: Tensor) -> Any:
        """What is kept in the place of ``tensor``."""
        if tensor.nbytes < SMALL or isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return tensor
        values = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        values.copy_(tensor, non_blocking=True)
        return Away(values, tensor.device)

    def unpack(self, kept: Any) -> Tensor:
        """The tensor, on its device."""
        if isinstance(kept, Away):
            return kept.values.to(kept.device, non_blocking=True)
        assert isinstance(kept, Tensor)
        return kept
