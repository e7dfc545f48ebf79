"""Where tensors cross between what every rank computes and what each computes a share of: pairs of moves, forward and backward.

Ranks hold the same tensor outside (or a part of each text, ``Text``), and each works on its share of columns inside. What one
direction sums the other copies, so that gradients outside are whole on every rank (Shoeybi et al. 2019, section 3; with parts of the
text, Korthikanti et al. 2022, section 4.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dml_runner.comm.links import Links
from dml_runner.parallel.tensor.moves import own_part, own_part_of_sum, put_together, summed


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a sum over ranks inside an autograd function cannot be traced
def enter(x: Tensor, links: Links) -> Any:
    """``x`` as it is; its gradient is summed over the ranks. Its gradient must belong to nobody else: what ``linear`` returns is so."""
    return _Enter.apply(x, links)  # type: ignore[no-untyped-call]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def leave(x: Tensor, links: Links) -> Any:
    """The sum of ``x`` over the ranks, in its own memory; its gradient as it is."""
    return _Leave.apply(x, links)  # type: ignore[no-untyped-call]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def enter_whole(part: Tensor, links: Links, length: int) -> Any:
    """The parts of all ranks, (batch, length, ...); a gradient is summed over the ranks, and each has its own part of it."""
    return _EnterWhole.apply(part, links, length)  # type: ignore[no-untyped-call]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def leave_in_parts(x: Tensor, links: Links) -> Any:
    """This rank's part of the sum of (batch, length, ...) over the ranks; gradients are put together."""
    return _LeaveInParts.apply(x, links)  # type: ignore[no-untyped-call]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def take_part(x: Tensor, links: Links) -> Any:
    """This rank's part of (batch, length, ...), which all ranks hold; gradients are put together."""
    return _TakePart.apply(x, links)  # type: ignore[no-untyped-call]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def join_parts(part: Tensor, links: Links, length: int) -> Any:
    """The parts of all ranks, (batch, length, ...), which all go on with; of the gradient, the same on all, each has its own part."""
    return _JoinParts.apply(part, links, length)  # type: ignore[no-untyped-call]


def as_multiplied(x: Tensor) -> Tensor:
    """``x`` in the type in which ``linear`` will multiply it, so that it travels as narrow as that, and its gradient too."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.element_size() <= 4:
        return x.to(torch.get_autocast_dtype(kind))
    return x


class _Enter(Function):
    @staticmethod
    def forward(context: Any, x: Tensor, links: Links) -> Tensor:
        context.links = links
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(context.links, gradient), None


class _Leave(Function):
    @staticmethod
    def forward(context: Any, x: Tensor, links: Links) -> Tensor:
        out = summed(links, x)
        if out is x:
            context.mark_dirty(x)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _EnterWhole(Function):
    @staticmethod
    def forward(context: Any, part: Tensor, links: Links, length: int) -> Tensor:
        context.links = links
        return put_together(links, part, length)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return own_part_of_sum(context.links, gradient), None, None


class _LeaveInParts(Function):
    @staticmethod
    def forward(context: Any, x: Tensor, links: Links) -> Tensor:
        context.links, context.length = links, x.shape[1]
        return own_part_of_sum(links, x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return put_together(context.links, gradient, context.length), None


class _TakePart(Function):
    @staticmethod
    def forward(context: Any, x: Tensor, links: Links) -> Tensor:
        context.links, context.length = links, x.shape[1]
        return own_part(links, x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return put_together(context.links, gradient, context.length), None


class _JoinParts(Function):
    @staticmethod
    def forward(context: Any, part: Tensor, links: Links, length: int) -> Tensor:
        context.links = links
        return put_together(links, part, length)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return own_part(context.links, gradient), None, None
