"""One rank of ``dml bench comm`` and ``dml bench links``: it runs every case in turn, and all ranks hear what each measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dml_runner.bench.comm_cases import WIDTH, Case, check, run
from dml_runner.bench.ranks import Place, be_rank, carried
from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links

WARM_UP = 2
"""Rounds before the first that counts."""
SOON = 250_000
"""Bytes that a turn should move at least: smaller tensors are sent several times in it, and the mean counts."""
MOST_TIMES = 20
PROBE_BYTES = 4_000_000


@dataclass(frozen=True)
class Ask:
    """What the ranks measure.

    Attributes:
        cases: in turn, those of one collective and size together.
        rounds: turns of each that count.
        node: ranks a node of the hierarchical algorithm.
        interface: whose byte counters are read; None: none.
    """

    cases: tuple[Case, ...]
    rounds: int
    node: int
    interface: str | None = None


@dataclass(frozen=True)
class Found:
    """What all ranks measured of a case.

    Attributes:
        seconds: of each round, by the slowest rank.
        sent: bytes each rank sent in one go of the collective, counted in our code (the backend's by its law).
        wire: bytes each rank's interface sent meanwhile, the median round; None: no interface was named.
    """

    seconds: list[float]
    sent: list[int]
    wire: list[float] | None


def read_ask(told: Any) -> Ask:
    """An ask that travelled as JSON."""
    return Ask(tuple(Case(**case) for case in told["cases"]), told["rounds"], told["node"], told["interface"])


def measure_cases(ask: Ask, group: dist.ProcessGroup) -> tuple[list[Found], float]:
    """Run ``ask`` on this rank of ``group``, as all its ranks do; the same findings on all, and a link's rate in bytes a second.

    The rate is the best that plain messages between two ranks reach: no algorithm of ours in it.

    Raises:
        RuntimeError: a collective came to a wrong result.
    """
    found: list[Found] = []
    for first, last in _neighbours(ask.cases):
        found += _alternate(ask, ask.cases[first:last], group)
    return found, _rate(group)


def _neighbours(cases: Sequence[Case]) -> list[tuple[int, int]]:
    """Stretches of cases that differ in the algorithm alone; they take turns."""
    starts = [
        at for at, case in enumerate(cases) if at == 0 or (case.collective, case.size) != (cases[at - 1].collective, cases[at - 1].size)
    ]
    return list(zip(starts, [*starts[1:], len(cases)], strict=True))


def _alternate(ask: Ask, cases: Sequence[Case], group: dist.ProcessGroup) -> list[Found]:
    sent = Sent()
    links = Links(group, sent)
    for case in cases:
        check(case, links, ask.node)
    tensor = torch.zeros(cases[0].elements(links.size))
    times = max(1, min(MOST_TIMES, SOON // (tensor.numel() * WIDTH)))
    mine = torch.zeros(len(cases), ask.rounds, 3, dtype=torch.float64)
    for turn in range(-WARM_UP, ask.rounds):
        for number, case in enumerate(cases):
            group.barrier().wait()
            sent.take()
            wire, began = _wire(ask.interface), time.perf_counter()
            for _ in range(times):
                run(case, links, tensor, ask.node)
            seconds = time.perf_counter() - began
            group.barrier().wait()
            if turn >= 0:
                mine[number, turn] = torch.tensor([seconds, sent.take(), _wire(ask.interface) - wire], dtype=torch.float64) / times
    everyone = [torch.empty_like(mine) for _ in range(links.size)]
    group.allgather([everyone], [mine]).wait()
    return [_found(each, ask.interface is not None) for each in torch.stack(everyone).unbind(1)]


def _found(rows: Tensor, wired: bool) -> Found:
    """From (ranks, rounds, figures) to what they come to."""
    middle = rows.median(dim=1).values
    wire = middle[:, 2].tolist() if wired else None
    return Found(rows[:, :, 0].amax(dim=0).tolist(), [int(count) for count in middle[:, 1]], wire)


def _rate(group: dist.ProcessGroup) -> float:
    """Bytes a second of plain messages from rank 0 to rank 1 while all others wait: the best of 9, as it shall bound the others."""
    buffer = torch.ones(PROBE_BYTES, dtype=torch.uint8)
    best = torch.full((1,), torch.inf, dtype=torch.float64)
    for _ in range(9):
        group.barrier().wait()
        began = time.perf_counter()
        if group.rank() == 0:
            group.send([buffer], 1, 0).wait()
        elif group.rank() == 1:
            group.recv([buffer], 0, 0).wait()
            best.clamp_(max=time.perf_counter() - began)
    group.broadcast(best, 1).wait()
    return PROBE_BYTES / float(best)


def _wire(interface: str | None) -> int:
    """Bytes that an interface of this process's network has sent; 0: none is named."""
    return 0 if interface is None else carried(interface)[0]


def work(told: Any, place: Place) -> Any:
    """What this rank and all others found, as JSON."""
    found, rate = measure_cases(read_ask(told), place.group)
    return {"found": [asdict(each) for each in found], "rate": rate}


if __name__ == "__main__":
    be_rank(sys.argv[1:], work)
