"""What tensors do between the ranks that share a layer: they are summed, put together or divided along their second dimension."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dml_runner.comm import collectives
from dml_runner.comm.laws import bounds, share_sizes
from dml_runner.comm.links import Links


def summed(links: Links, tensor: Tensor) -> Tensor:
    """The sum of ``tensor`` over the ranks; in place where it is contiguous, and nobody watches what operations return."""
    if links.size == 1:
        return tensor
    tensor = tensor.clone(memory_format=torch.contiguous_format) if is_in_torch_dispatch_mode() else tensor.contiguous()
    collectives.all_reduce(links, tensor, "backend")
    return tensor


def rows_of_all(links: Links, mine: Tensor) -> Tensor:
    """(ranks, *shape) of every rank's tensor of one shape."""
    rows = mine.new_empty(links.size, *mine.shape)
    rows[links.rank] = mine
    collectives.all_gather(links, rows, _algorithm(mine))
    return rows


def put_together(links: Links, part: Tensor, length: int, dimension: int = 1) -> Tensor:
    """Every rank's part of a tensor ``length`` long in this dimension, one behind the other; each rank sends its part to all others."""
    sizes = share_sizes(length, links.size)
    missing = max(sizes) - sizes[links.rank]
    if missing:  # shares travel equally long
        shape = list(part.shape)
        shape[dimension] = missing
        part = torch.cat((part, part.new_zeros(shape)), dim=dimension)
    rows = rows_of_all(links, part)
    return torch.cat([row.narrow(dimension, 0, size) for row, size in zip(rows, sizes, strict=True)], dim=dimension)


def own_part(links: Links, whole: Tensor) -> Tensor:
    """This rank's part of a tensor, divided along dimension 1; contiguous."""
    cuts = bounds(whole.shape[1], links.size)
    return whole[:, cuts[links.rank] : cuts[links.rank + 1]].contiguous()


def own_part_of_sum(links: Links, whole: Tensor) -> Tensor:
    """This rank's part, along dimension 1, of the sum over the ranks; each rank sends (n - 1) / n of the tensor."""
    cuts = bounds(whole.shape[1], links.size)
    longest = max(end - start for start, end in pairwise(cuts))
    shape = (links.size, whole.shape[0], longest, *whole.shape[2:])
    rows = whole.new_empty(shape) if longest * links.size == whole.shape[1] else whole.new_zeros(shape)
    for row, (start, end) in zip(rows, pairwise(cuts), strict=True):
        row[:, : end - start] = whole[:, start:end]
    mine = collectives.reduce_scatter(links, rows, _algorithm(whole)).view(shape[1:])
    return mine[:, : cuts[links.rank + 1] - cuts[links.rank]].clone(memory_format=torch.contiguous_format)  # the rest need not be kept


def _algorithm(tensor: Tensor) -> Literal["backend", "ring"]:
    return "backend" if tensor.is_cuda else "ring"  # gloo's reduce-scatter moves twice what it must
