"""World: this rank among all ranks, and the small words they exchange outside the gradients' way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from dml_runner.comm.counter import Sent


@dataclass(frozen=True)
class World:
    """One rank's view of all ranks.

    Attributes:
        rank: 0 to size - 1.
        size: all ranks.
        device: where this rank computes.
        control: group for small words on the CPU; None when this rank is alone.
        sent: bytes of gradients and parameters this rank has sent.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    sent: Sent = field(default_factory=Sent)

    def gather(self, values: Sequence[float]) -> torch.Tensor:
        """Everyone's ``values`` (fp64) as rows of a (size, len(values)) tensor, the same on every rank."""
        return self.gather_tensor(torch.tensor(values, dtype=torch.float64))

    def gather_tensor(self, mine: torch.Tensor) -> torch.Tensor:
        """Everyone's one-dimensional CPU tensor, equally long on all ranks, as rows."""
        if self.control is None:
            return mine[None]
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self.control)
        return torch.stack(rows)

    def highest(self, value: int) -> int:
        """The highest ``value`` any rank brings."""
        if self.control is None:
            return value
        word = torch.tensor(value)
        dist.all_reduce(word, dist.ReduceOp.MAX, group=self.control)
        return int(word)


def open_world(rank: int, size: int, device: torch.device, backend: str, store: dist.Store | None, timeout: timedelta) -> World:
    """Join the ranks of ``store`` and return this rank's view; alone (size 1, no store) nothing is opened."""
    if size == 1 and store is None:
        return World(rank, size, device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    control = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo")
    return World(rank, size, device, control)


def close_world(world: World) -> None:
    """Leave the group, if one was joined."""
    if world.control is not None:
        dist.destroy_process_group()
