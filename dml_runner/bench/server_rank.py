"""One rank of ``dml bench server`` and ``dml bench loopback``: a worker, a server or both, and nothing to compute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dml_runner.bench.ranks import TIMEOUT, Place, be_rank, carried
from dml_runner.comm.counter import Sent
from dml_runner.comm.pairs import Pair, Remote, Within, within
from dml_runner.engines.server_engine import ShareState
from dml_runner.engines.worker_engine import LockstepInmate
from dml_runner.parallel import push_pull
from dml_runner.parallel.push_pull import PushPull
from dml_runner.parallel.server import AHEAD, Server, Share
from dml_runner.parallel.shards import Segment, Shards

WARM_UP = 2
"""Steps before the first that counts."""
RATE = 0.01


@dataclass(frozen=True)
class Served:
    """What the ranks measure.

    Attributes:
        workers: ranks that push and pull.
        servers: that hold the weights.
        dedicated: whether servers are ranks of their own, after the workers; else server i lives in worker i.
        elements: weights, fp32.
        bucket: elements that travel together.
        rounds: steps that count.
        interface: whose byte counters are read; None: none.
        raw: whether plain messages take turns with the steps.
    """

    workers: int
    servers: int
    dedicated: bool
    elements: int
    bucket: int
    rounds: int
    interface: str | None = None
    raw: bool = False

    @property
    def ranks(self) -> int:
        """Processes of it."""
        return self.workers + (self.servers if self.dedicated else 0)

    def server_rank(self, server: int) -> int:
        """The rank in which a server lives."""
        return server + (self.workers if self.dedicated else 0)


@dataclass
class Party:
    """What lives in one rank.

    Attributes:
        to_servers: a pair with each server, where this rank is a worker.
        to_workers: a pair with each worker, where a server lives in it.
        door: the server's side of the pair with the worker of this rank.
    """

    to_servers: list[Pair] = field(default_factory=list)
    to_workers: list[Pair] = field(default_factory=list)
    door: Within | None = None


def meet(ask: Served, place: Place, sent: Sent) -> Party:
    """Meet those this rank talks to, in one order on all ranks."""
    found = Party()
    for number in range(ask.servers):
        there = ask.server_rank(number)
        for worker in range(ask.workers) if there == place.rank else [place.rank] if place.rank < ask.workers else []:
            if worker == there:
                inner, found.door = within()
                found.to_servers.append(inner)
                found.to_workers.append(found.door)
                continue
            pair = Remote(place.store, f"server-{number}", place.rank, worker if there == place.rank else there, sent, TIMEOUT)
            (found.to_workers if there == place.rank else found.to_servers).append(pair)
    return found


def stepper(ask: Served, place: Place, party: Party) -> Callable[[], None]:
    """One whole step of this rank: push every bucket and have the new weights, or serve that to all workers."""
    shards = Shards([ask.elements], ask.servers, ask.bucket)
    server = None
    if party.to_workers:
        number = next(n for n in range(ask.servers) if ask.server_rank(n) == place.rank)
        share = Share(shards, number, lambda segment: torch.zeros(segment.row.size), _sgd, AHEAD)
        server = Server(share, party.to_workers, None, float, None)
    if not party.to_servers:
        assert server is not None
        serving = server
        return lambda: _ignore(serving.step(RATE))
    module = nn.Module()
    module.register_parameter("weights", nn.Parameter(torch.zeros(ask.elements)))
    exchange = PushPull(module, [], list(module.parameters()), shards, party.to_servers, ahead=push_pull.AHEAD)
    inmate = None if server is None or party.door is None else LockstepInmate(server, ShareState(server.share, []), party.door)

    def step() -> None:
        if inmate is not None:
            inmate.begin(RATE)
        exchange.finish()
        exchange.wait()
        if inmate is not None:
            inmate.end()

    return step


def _sgd(segments: Sequence[tuple[nn.Parameter, Segment]]) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [parameter for parameter, _ in segments], "share": 1.0}], lr=RATE)


def _ignore(_: object) -> None:
    """What a step of a server returns has no reader here."""


def _plain(ask: Served, place: Place, party: Party) -> Callable[[], None]:
    """The messages of a step without the step: each bucket to the servers, and when all is there each bucket back."""
    shards = Shards([ask.elements], ask.servers, ask.bucket)
    spans = [[shards.part(bucket, server) for server in range(ask.servers)] for bucket in range(len(shards.buckets))]
    worker = place.rank < ask.workers
    mine = [(pair, server) for server, pair in enumerate(party.to_servers)]
    if not worker:
        mine = [(pair, place.rank - ask.workers) for pair in party.to_workers]
    buffers = [[torch.ones(each[server].size) for each in spans] for _, server in mine]

    def go(sending: bool) -> None:
        found = []
        for (pair, _), rows in zip(mine, buffers, strict=True):
            act: Callable[[Tensor, int], Any] = pair.send if sending else pair.receive
            found += [act(row, tag) for tag, row in enumerate(rows)]
        for pending in found:
            pending.wait()

    def both() -> None:
        go(worker)
        go(not worker)

    return both


def timed(place: Place, sent: Sent, turns: Sequence[Callable[[], object]], rounds: int, workers: int, interface: str | None) -> Any:
    """Take ``turns`` for some ``rounds`` on all ranks: seconds of each by the slowest worker, and bytes a round of every rank."""
    seconds = torch.zeros(len(turns), rounds, dtype=torch.float64)
    before = (0, 0)
    for turn in range(-WARM_UP, rounds):
        if turn == 0:
            place.barrier()
            sent.take()
            before = carried(interface) if interface else (0, 0)
        for number, act in enumerate(turns):
            if len(turns) > 1:
                place.barrier()
            started = time.perf_counter()
            act()
            if turn >= 0:
                seconds[number, turn] = time.perf_counter() - started
    after = carried(interface) if interface else (0, 0)
    place.barrier()
    figures = [sent.take(), after[0] - before[0], after[1] - before[1]]
    rows = place.gather(torch.tensor(figures, dtype=torch.float64) / rounds)
    slowest = place.gather(seconds)[:workers].amax(dim=0)
    return {"seconds": slowest.tolist(), "counted": rows[:, 0].tolist(), "sent": rows[:, 1].tolist(), "received": rows[:, 2].tolist()}


def work(told: Any, place: Place) -> Any:
    """Measure on this rank what ``told`` says."""
    ask = Served(**told)
    sent = Sent()
    party = meet(ask, place, sent)
    turns = [stepper(ask, place, party)] + ([_plain(ask, place, party)] if ask.raw else [])
    return timed(place, sent, turns, ask.rounds, ask.workers, ask.interface)


if __name__ == "__main__":
    be_rank(sys.argv[1:], work)
