"""What several ranks of one model have in common: gradients of one parameter, and what its last stage puts out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dml_runner.comm import collectives
from dml_runner.comm.collectives import Algorithm
from dml_runner.comm.links import Links


def add_up(links: Links, parameters: Sequence[nn.Parameter], algorithm: Algorithm) -> None:
    """Give every rank the sum of all ranks' gradients of ``parameters``, in one message; a rank without a gradient adds nothing.

    Args:
        links: the ranks; all name the same parameters in one order.
        parameters: of one type.
        algorithm: how they sum.
    """
    if not parameters:
        return
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    collectives.all_reduce(links, flat, algorithm)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def tell(links: Links, output: torch.Tensor | None) -> torch.Tensor:
    """The last peer's ``output``, on the CPU of every peer, in fp32.

    Args:
        links: on the CPU.
        output: of up to 7 dimensions; None elsewhere.
    """
    last = links.size - 1
    header = torch.zeros(8, dtype=torch.int64)
    if output is None:
        links.receive(header, last).wait()
        told = torch.empty(header[1 : 1 + int(header[0])].tolist())
        links.receive(told, last).wait()
        return told
    told = output.float().cpu().contiguous()
    header[: 1 + told.dim()] = torch.tensor([told.dim(), *told.shape])
    sending = [links.send(tensor, peer) for peer in range(last) for tensor in (header, told)]
    for each in sending:
        each.wait()
    return told
