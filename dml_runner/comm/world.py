"""World: this rank among all ranks, and the small words they exchange outside the gradients' way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from dml_runner.comm.counter import Sent
from dml_runner.comm.meeting import Meeting


@dataclass(frozen=True)
class World:
    """One rank's view of all ranks.

    Attributes:
        rank: 0 to size - 1.
        size: all ranks.
        device: where this rank computes.
        control: group for small words on the CPU; None when this rank is alone.
        meeting: in place of ``control`` where ranks may die and the others go on.
        store: where the ranks met; None when this rank is alone.
        sent: bytes of gradients and parameters this rank has sent.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    meeting: Meeting | None = None
    store: dist.Store | None = None
    sent: Sent = field(default_factory=Sent)

    def gather(self, values: Sequence[float]) -> torch.Tensor:
        """Everyone's ``values`` (fp64) as rows of a (living ranks, len(values)) tensor, the same on every rank."""
        return self.gather_tensor(torch.tensor(values, dtype=torch.float64))

    def gather_tensor(self, mine: torch.Tensor) -> torch.Tensor:
        """Everyone's one-dimensional CPU tensor, equally long on all ranks, as rows."""
        if self.meeting is not None:
            return torch.stack(self.meeting.gather(mine))
        if self.control is None:
            return mine[None]
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self.control)
        return torch.stack(rows)

    def start_gather(self, values: Sequence[float]) -> Callable[[], torch.Tensor]:
        """Begin a ``gather``; what it comes to is waited for by calling what is returned."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.control is None:
            return lambda: self.gather_tensor(mine)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        work = dist.all_gather(rows, mine, group=self.control, async_op=True)

        def finish() -> torch.Tensor:
            work.wait()
            return torch.stack(rows)

        return finish

    def highest(self, value: int) -> int:
        """The highest ``value`` any rank brings."""
        if self.meeting is not None:
            return int(self.gather_tensor(torch.tensor([value])).max())
        if self.control is None:
            return value
        word = torch.tensor(value)
        dist.all_reduce(word, dist.ReduceOp.MAX, group=self.control)
        return int(word)

    @property
    def living(self) -> tuple[int, ...]:
        """The ranks that are there, as far as all know."""
        return tuple(range(self.size)) if self.meeting is None else self.meeting.living


def open_meeting(rank: int, size: int, device: torch.device, store: dist.Store) -> World:
    """Join the ranks of ``store`` in a world in which some may die."""
    return World(rank, size, device, meeting=Meeting(store, rank, size), store=store)


def open_world(rank: int, size: int, device: torch.device, backend: str, store: dist.Store | None, timeout: timedelta) -> World:
    """Join the ranks of ``store`` and return this rank's view; alone (size 1, no store) nothing is opened."""
    if size == 1 and store is None:
        return World(rank, size, device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    control = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo")
    return World(rank, size, device, control, store=store)


def close_world(world: World) -> None:
    """Leave the group, if one was joined."""
    if world.control is not None:
        dist.destroy_process_group()
