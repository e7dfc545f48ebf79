"""Stages that take a set time and compute nothing: they sleep, so that more ranks than cores run beside each other as if alone."""

from __future__ import annotations

import time
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

ROWS, WIDTH = 8, 2048
"""Shape of what travels between stages: 64 KB in fp32."""
TRIES = 50


class Sleep:
    """Sleeps of a set length: what this machine oversleeps, measured once, is taken off.

    Args:
        seconds: that each shall take.
    """

    def __init__(self, seconds: float) -> None:
        late = []
        for _ in range(TRIES):
            started = time.perf_counter()
            time.sleep(seconds / 4)
            late.append(time.perf_counter() - started - seconds / 4)
        self._seconds = max(0.0, seconds - sorted(late)[TRIES // 2])

    def __call__(self) -> None:
        """Sleep once."""
        time.sleep(self._seconds)


class _Inputs(Function):
    """``x``; forward and the gradient of the input take a sleep each."""

    @staticmethod
    def forward(context: Any, x: Tensor, sleep: Sleep) -> Tensor:
        context.sleep = sleep
        context.save_for_backward(x)
        sleep()
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        _ = context.saved_tensors
        context.sleep()
        return gradient, None


class _Weights(Function):
    """A weight; its gradient takes a sleep."""

    @staticmethod
    def forward(context: Any, weight: Tensor, sleep: Sleep) -> Tensor:
        context.sleep = sleep
        return weight.view_as(weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        context.sleep()
        return gradient, None


class Stage(nn.Module):
    """One virtual stage: a forward of one sleep, and a backward of two, one to its input and one to its weight.

    Args:
        sleep: of this stage.
        first: whether it makes what it takes.
    """

    def __init__(self, sleep: Sleep, first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))
        self.stem = nn.Parameter(torch.ones(ROWS, WIDTH)) if first else None
        self._sleep = sleep

    def forward(self, x: Tensor | None) -> Tensor:
        """(rows, width) -> the same shape; the first stage takes nothing."""
        start = x if self.stem is None else self.stem
        entered: Tensor = _Inputs.apply(start, self._sleep)  # type: ignore[no-untyped-call]
        weight: Tensor = _Weights.apply(self.weight, self._sleep)  # type: ignore[no-untyped-call]
        return entered + weight


class Kept:
    """What autograd keeps for backward, counted while it is there.

    Attributes:
        most: tensors that were kept at one time, since the last ``clear``.
    """

    def __init__(self) -> None:
        self.most = 0
        self._there: weakref.WeakSet[_Packed] = weakref.WeakSet()

    def watch(self) -> saved_tensors_hooks:
        """While it is entered, what is kept is counted: each tensor until its memory is let go."""
        return saved_tensors_hooks(self._pack, lambda packed: packed.tensor)

    def clear(self) -> None:
        """Forget the highest count."""
        self.most = len(self._there)

    def _pack(self, tensor: Tensor) -> _Packed:
        packed = _Packed(tensor)
        self._there.add(packed)
        self.most = max(self.most, len(self._there))
        return packed


class _Packed:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
