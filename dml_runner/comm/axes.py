"""Axes: this rank's row of peers along each axis of a mesh, as Links."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links
from dml_runner.comm.world import World
from dml_runner.layout import Axis, Mesh


@dataclass(frozen=True)
class Axes:
    """The peers along each axis, in its order; None where an axis has one rank.

    Attributes:
        rising: along the pipeline, for what goes to a rank of a higher number.
        falling: the same ranks, for what goes the other way: on some backends messages of one group wait for each other.
        words: the same ranks, for small words on the CPU that count as nobody's bytes.
        data: the ranks that hold the same part of the model.
        tensor: the ranks that hold the same layers.
    """

    rising: Links | None
    falling: Links | None
    words: Links | None
    data: Links | None
    tensor: Links | None


def open_axes(mesh: Mesh, world: World) -> Axes:
    """Meet the peers along every axis; called by all ranks of the mesh together.

    Args:
        mesh: of all ranks there are.
        world: this rank among them.
    """

    def meet(axis: Axis) -> Links | None:
        return None if getattr(mesh, axis) == 1 else Links(_group(mesh, axis, world.rank), world.sent)

    rising = meet("pipeline")
    words = None if rising is None else Links(world.control, Sent(), mesh.along("pipeline", world.rank))
    return Axes(rising, meet("pipeline"), words, meet("data"), meet("tensor"))


def _group(mesh: Mesh, axis: Axis, rank: int) -> dist.ProcessGroup:
    """The group of ``rank`` along an axis; all ranks make all groups in one order."""
    rows = sorted({mesh.along(axis, other) for other in range(mesh.size)})
    groups = {row: dist.new_group(list(row)) for row in rows}
    mine: dist.ProcessGroup = groups[mesh.along(axis, rank)]
    return mine
