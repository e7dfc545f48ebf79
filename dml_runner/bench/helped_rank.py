"""One rank of the rows with helpers of ``dml bench server``: a worker with a tensor, or a helper that sums its share of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from dml_runner.bench.ranks import Place, be_rank
from dml_runner.bench.server_rank import timed
from dml_runner.comm import helped
from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links


@dataclass(frozen=True)
class Helped:
    """What the ranks measure.

    Attributes:
        workers: ranks with a tensor.
        helpers: ranks after them that only sum.
        elements: of the tensor, fp32.
        rounds: sums that count.
        interface: whose byte counters are read.
    """

    workers: int
    helpers: int
    elements: int
    rounds: int
    interface: str


def work(told: Any, place: Place) -> Any:
    """Measure on this rank what ``told`` says."""
    ask = Helped(**told)
    sent = Sent()
    links = Links(place.group, sent)
    tensor = torch.zeros(ask.elements)

    def act() -> None:
        if place.rank < ask.workers:
            helped.all_reduce(links, tensor, ask.workers)
        else:
            helped.serve(links, ask.elements, tensor.dtype, ask.workers)

    return timed(place, sent, [act], ask.rounds, ask.workers, ask.interface)


if __name__ == "__main__":
    be_rank(sys.argv[1:], work)
