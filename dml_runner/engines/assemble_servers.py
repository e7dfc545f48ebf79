"""Putting the ranks of a parameter server together: the row of weights, its division, and who talks to whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from dml_runner import optim
from dml_runner.comm.pairs import Pair, Remote, Within, within
from dml_runner.comm.wires.codecs import Codec, open_codec
from dml_runner.comm.wires.memory import Memory
from dml_runner.comm.world import World
from dml_runner.engines.asynchronous_worker import FreeInmate, FreeWorker
from dml_runner.engines.base import Engine
from dml_runner.engines.copies import ServerCopies
from dml_runner.engines.server_engine import FreeServer, LockstepServer, Served, ShareState
from dml_runner.engines.wire_memory import Remembered
from dml_runner.engines.worker_engine import LockstepInmate, WorkerEngine
from dml_runner.layout import Layout
from dml_runner.models.base import Model, distances
from dml_runner.parallel import push_pull
from dml_runner.parallel import server as server_side
from dml_runner.parallel.asynchronous_server import AsynchronousServer, Tickets
from dml_runner.parallel.desk import Desk
from dml_runner.parallel.push_pull import Encode, PushPull, as_is
from dml_runner.parallel.replica import Replica
from dml_runner.parallel.server import Server, Share
from dml_runner.parallel.shards import Segment, Shards
from dml_runner.run import Run

MB = 2**20
FP32 = 4
PATIENCE = timedelta(minutes=30)
"""How long a silent partner is waited for; a hang is noticed long before, by the pulse."""
FOREVER = timedelta(days=30)
"""How long a server waits for another's next copy."""


class Division:
    """The trained parameters of a model, last ones first as their gradients come, and how servers share them."""

    def __init__(self, model: Model, layout: Layout) -> None:
        assert layout.servers is not None
        self.parameters = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        self.served = list(_served(model, self.parameters))
        self.shards = Shards([each.size for each in self.served], layout.servers.count, max(1, int(layout.bucket_mb * MB) // FP32))


def _served(model: Model, parameters: Sequence[nn.Parameter]) -> Iterator[Served]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    far = {id(parameter): distance for parameter, distance, _ in distances(model)}
    for parameter in parameters:
        yield Served(tuple(names[id(parameter)]), tuple(parameter.shape), far[id(parameter)])


def assemble_served(run: Run, layout: Layout, world: World, model: Model) -> Engine:
    """The engine of this rank, a worker or a server; all ranks call it together.

    Args:
        run: the job.
        layout: with ``servers``.
        world: the ranks.
        model: on the device of a worker, and in host memory on a server, with its starting weights.
    """
    assert layout.servers is not None
    division = Division(model, layout)
    group = _servers(layout) if layout.lockstep else None
    links = _meet(layout, world)
    exchange, memory = None, Memory()
    if links.servers:
        encode, ahead = _encoder(layout, memory), push_pull.AHEAD if _answers_early(run, layout) else None
        exchange = PushPull(model, model.blocks, division.parameters, division.shards, links.servers, encode, ahead)
    share = _share(run, layout, world, division) if links.workers else None
    state = None if share is None else ShareState(share, division.served)
    codec = None if layout.wire == "none" else open_codec(layout.wire)
    if layout.lockstep:
        server = None if share is None else Server(share, links.workers, run.train.clip_norm, lambda value: _total(value, group), codec)
        numbers = [layout.mesh.size, division.shards.servers, *(bucket.size for bucket in division.shards.buckets)]
        return _lockstep(run, layout, world, model, links, exchange, server, state, Remembered(memory, world.rank, numbers))
    desk = Desk(range(layout.mesh.size), layout.mesh.data, _bound(layout)) if layout.server_rank(0) == world.rank else None
    free = None if share is None else AsynchronousServer(share, links.workers, codec, desk)
    if exchange is None:
        assert free is not None
        assert state is not None
        return FreeServer(free, state, model, _copies(layout, world, state))
    inmate = None if free is None or state is None else FreeInmate(free, state)
    tickets = Tickets(links.servers[0], links.servers, len(division.shards.buckets))
    return FreeWorker(model, exchange, inmate, tickets, layout, world, run.seed, run.train.clip_norm)


def _lockstep(
    run: Run,
    layout: Layout,
    world: World,
    model: Model,
    links: _Links,
    exchange: PushPull | None,
    server: Server | None,
    state: ShareState | None,
    remembered: Remembered,
) -> Engine:
    if exchange is None:
        assert server is not None
        assert state is not None
        return LockstepServer(server, state, model, _copies(layout, world, state))
    inmate = None if server is None or state is None or links.door is None else LockstepInmate(server, state, links.door)
    return WorkerEngine(model, exchange, inmate, layout, world, run.seed, remembered)


def _copies(layout: Layout, world: World, state: ShareState) -> ServerCopies | None:
    """Where there are replicas, each server's share is copied to the next server, the last one's to the first."""
    assert layout.servers is not None
    assert world.store is not None
    if not layout.servers.replicas:
        return None
    ring = [layout.server_rank(number) for number in range(layout.servers.count)]
    at = ring.index(world.rank)
    before, after = ring[at - 1], ring[(at + 1) % len(ring)]
    met = {
        owner: Remote(world.store, f"replica-{owner}", world.rank, other, world.sent, FOREVER)
        for owner, other in sorted([(world.rank, after), (before, before)])
    }
    own, others = layout.saver(world.rank), layout.saver(before)
    assert own is not None
    assert others is not None
    return ServerCopies(Replica(met[world.rank], met[before]), state.pieces, own, others)


def _bound(layout: Layout) -> int | None:
    """Pushes a worker may be ahead of the slowest; None: any number."""
    assert layout.servers is not None
    return layout.servers.staleness if layout.servers.consistency == "ssp" else None


@dataclass
class _Links:
    """This rank's pairs.

    Attributes:
        servers: with each server, where this rank is a worker.
        workers: with each worker, where a server lives in this rank.
        door: the server's side of the pair with the worker of this rank, where both live in it.
    """

    servers: list[Pair] = field(default_factory=list)
    workers: list[Pair] = field(default_factory=list)
    door: Within | None = None


def _meet(layout: Layout, world: World) -> _Links:
    """Meet those this rank talks to, server by server on all ranks, so that nobody waits for somebody who waits."""
    assert layout.servers is not None
    assert world.store is not None
    found, workers = _Links(), range(layout.mesh.size)
    for number in range(layout.servers.count):
        there = layout.server_rank(number)
        for worker in workers if there == world.rank else [world.rank] if world.rank in workers else []:
            if worker == there:
                inner, found.door = within()
                found.servers.append(inner)
                found.workers.append(found.door)
                continue
            other = worker if there == world.rank else there
            pair = Remote(world.store, f"server-{number}", world.rank, other, world.sent, PATIENCE)
            (found.workers if there == world.rank else found.servers).append(pair)
    return found


def _share(run: Run, layout: Layout, world: World, division: Division) -> Share:
    """What the server that lives in this rank holds."""
    assert layout.servers is not None
    served = division.served
    number = next(n for n in range(layout.servers.count) if layout.server_rank(n) == world.rank)

    def optimize(segments: Sequence[tuple[nn.Parameter, Segment]]) -> torch.optim.Optimizer:
        found = [(parameter, served[s.parameter].distance, len(served[s.parameter].shape) >= 2) for parameter, s in segments]
        return optim.build(run.optimizer, found)

    def row(segment: Segment) -> torch.Tensor:
        flat = division.parameters[segment.parameter].detach().flatten()
        return flat[segment.inside.start : segment.inside.stop]

    return Share(division.shards, number, row, optimize, server_side.AHEAD if _answers_early(run, layout) else None)


def _answers_early(run: Run, layout: Layout) -> bool:
    """Whether servers answer each bucket when all workers have pushed it, and need no gradient after that."""
    return layout.lockstep and run.train.clip_norm is None


def _servers(layout: Layout) -> dist.ProcessGroup | None:
    """A group of all servers for the norm of the whole gradient; None where there is one."""
    assert layout.servers is not None
    count = layout.servers.count
    return dist.new_group([layout.server_rank(n) for n in range(count)], backend="gloo") if count > 1 else None


def _total(value: float, group: dist.ProcessGroup | None) -> float:
    if group is None:
        return value
    word = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(word, group=group)
    return float(word)


def _encoder(layout: Layout, memory: Memory) -> Encode:
    if layout.wire == "none":
        return as_is
    codec: Codec = open_codec(layout.wire)
    return lambda key, gradient: memory.encode(codec, str(key), gradient)
