"""The collectives of torch's own backend (gloo, NCCL), in the form of ours: in place, any size.

The backend divides evenly only, so a tensor that n ranks do not divide is padded on its way. What it sends is out of our sight and
counted by its law (``laws.traffic``).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from dml_runner.comm.laws import traffic
from dml_runner.comm.links import Links
from dml_runner.comm.pipeline import check_sum, flat, shares


def all_reduce(links: Links, tensor: Tensor) -> None:
    """Sum ``tensor`` over the ranks, in place on every rank.

    Raises:
        ConfigError: the type has no sum.
        RuntimeError: a rank died, or the backend does not know the type.
    """
    check_sum(tensor)
    if _ready(links, "all_reduce", tensor):
        dist.all_reduce(flat(tensor), group=links.group)


def reduce_scatter(links: Links, tensor: Tensor) -> Tensor:
    """This rank's share of the sum, as a view of ``tensor``. Raises as ``all_reduce``."""
    check_sum(tensor)
    share = shares(flat(tensor), links.size)[links.rank]
    if _ready(links, "reduce_scatter", tensor):
        rows = _padded(links, tensor)
        mine = torch.empty_like(rows[0])
        dist.reduce_scatter(mine, list(rows), group=links.group)
        share.copy_(mine[: share.numel()])
    return share


def all_gather(links: Links, tensor: Tensor) -> None:
    """Fill ``tensor``, in which each rank has its own share, with everyone's."""
    if _ready(links, "all_gather", tensor):
        rows = _padded(links, tensor)
        dist.all_gather(list(rows), rows[links.rank].clone(), group=links.group)
        for share, row in zip(shares(flat(tensor), links.size), rows, strict=True):
            share.copy_(row[: share.numel()])


def gather(links: Links, tensor: Tensor, root: int = 0) -> None:
    """Fill ``tensor`` on ``root`` with everyone's share."""
    if _ready(links, "gather", tensor, root):
        rows = _padded(links, tensor)
        into = list(torch.empty_like(rows)) if links.rank == root else None
        dist.gather(rows[links.rank], into, group=links.group, group_dst=root)
        for share, row in zip(shares(flat(tensor), links.size), into or (), strict=into is not None):
            share.copy_(row[: share.numel()])


def broadcast(links: Links, tensor: Tensor, root: int = 0) -> None:
    """Fill ``tensor`` with that of ``root``."""
    if _ready(links, "broadcast", tensor, root):
        dist.broadcast(flat(tensor), group=links.group, group_src=root)


def reduce(links: Links, tensor: Tensor, root: int = 0) -> None:
    """Sum ``tensor`` over the ranks into that of ``root``; elsewhere it may be changed. Raises as ``all_reduce``."""
    check_sum(tensor)
    if _ready(links, "reduce", tensor, root):
        dist.reduce(flat(tensor), group=links.group, group_dst=root)


def _ready(links: Links, collective: str, tensor: Tensor, root: int = 0) -> bool:
    """Whether there is anything to do; if so its bytes are counted."""
    assert links.whole, "the backend's collectives take all ranks of a group: make a group of these ranks"
    if links.size == 1 or not tensor.numel():
        return False
    moved = traffic(collective, "backend", tensor.numel(), tensor.element_size(), links.size, root)
    links.sent.add(moved.sent[links.rank])
    return True


def _padded(links: Links, tensor: Tensor) -> Tensor:
    """The shares of ``tensor`` as equally long rows."""
    parts = shares(flat(tensor), links.size)
    rows = tensor.new_zeros(links.size, max(part.numel() for part in parts))
    for row, part in zip(rows, parts, strict=True):
        row[: part.numel()] = part
    return rows
