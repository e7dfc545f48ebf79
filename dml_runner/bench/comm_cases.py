"""What is measured: a collective by an algorithm on a tensor, checked and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dml_runner.comm import collectives
from dml_runner.comm.collectives import Algorithm
from dml_runner.comm.laws import ALGORITHMS
from dml_runner.comm.links import Links
from dml_runner.comm.pipeline import shares

WIDTH = 4
"""Bytes of an element: fp32."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        collective: a key of comm.laws.
        algorithm: how it is done.
        size: bytes of the whole tensor, about: it is made of whole elements, as many for each rank.
    """

    collective: str
    algorithm: Algorithm
    size: int

    def elements(self, ranks: int) -> int:
        """Of the tensor."""
        return max(1, round(self.size / WIDTH / ranks)) * ranks


def cases(collectives: Sequence[str], algorithms: Sequence[Algorithm], sizes: Sequence[int], ranks: int, node: int) -> tuple[Case, ...]:
    """All that exist of these, those of one collective and size together; hierarchical needs whole nodes, two of them at least."""
    return tuple(
        Case(collective, algorithm, size)
        for collective in collectives
        for size in sizes
        for algorithm in algorithms
        if collective in ALGORITHMS[algorithm] and (algorithm != "hierarchical" or (ranks % node == 0 and ranks > node))
    )


def run(case: Case, links: Links, tensor: Tensor, node: int) -> None:
    """One go of ``case`` on ``tensor``, in place; rank 0 is the root."""
    if case.collective == "all_reduce":
        collectives.all_reduce(links, tensor, case.algorithm, node if case.algorithm == "hierarchical" else None)
    elif case.collective == "reduce_scatter":
        collectives.reduce_scatter(links, tensor, case.algorithm)
    elif case.collective == "all_gather":
        collectives.all_gather(links, tensor, case.algorithm)
    elif case.collective == "gather":
        collectives.gather(links, tensor, case.algorithm)
    elif case.collective == "broadcast":
        collectives.broadcast(links, tensor, case.algorithm)
    else:
        collectives.reduce(links, tensor, case.algorithm)


def check(case: Case, links: Links, node: int) -> None:
    """Run ``case`` once on numbers whose result is known.

    Raises:
        RuntimeError: the result is another.
    """
    ranks, own = links.size, float(links.rank + 1)
    tensor = torch.full((case.elements(ranks),), own)
    run(case, links, tensor, node)
    total = [float(ranks * (ranks + 1) // 2)] * ranks
    parts = shares(tensor, ranks)
    if case.collective in ("all_reduce", "reduce"):
        expected = dict(enumerate(total))
    elif case.collective == "reduce_scatter":
        expected = {links.rank: total[0]}
    elif case.collective == "broadcast":
        expected = dict.fromkeys(range(ranks), 1.0)
    else:
        expected = {rank: rank + 1.0 for rank in range(ranks)}
    if case.collective in ("reduce", "gather") and links.rank != 0:
        return  # the result is the root's
    if any(not bool((parts[rank] == value).all()) for rank, value in expected.items()):
        raise RuntimeError(f"{case.collective} by {case.algorithm} of {case.size} bytes came to a wrong result on rank {links.rank}")
