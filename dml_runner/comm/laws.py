"""Laws of the collectives: the bytes each rank sends and receives, and the seconds that takes at least. Integers and floats only.

A rank's link is full-duplex: B bytes a second each way. So a rank that sends s and receives r bytes is busy for max(s, r) / B
at least, and an algorithm takes as long as its busiest rank. n ranks, a tensor of S bytes:

| collective     | ring                     | tree (two trees, half of S each)     | any algorithm at least |
|----------------|--------------------------|--------------------------------------|------------------------|
| all_reduce     | 2 (n - 1) / n S          | 2 S (S for n = 2, 3/2 S for n = 3)   | 2 (n - 1) / n S        |
| reduce_scatter | (n - 1) / n S            |                                      | (n - 1) / n S          |
| all_gather     | (n - 1) / n S            |                                      | (n - 1) / n S          |
| broadcast      | S                        | S                                    | S                      |
| reduce         | S                        | S                                    | S                      |
| gather         | (n - 1) / n S, received  |                                      | (n - 1) / n S          |

Sources: ring and the bound of all-reduce: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations" (2009). Bounds of the others: Chan, Heimlich, Purkayastha and van de Geijn, "Collective
communication: theory, practice, and experience" (2007), the bandwidth terms of its lower bounds. Two trees: Sanders,
Speck and Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan" (2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

from dml_runner.comm.trees import two_trees

COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "gather")
ALGORITHMS = {
    "backend": COLLECTIVES,
    "ring": COLLECTIVES,
    "tree": ("all_reduce", "broadcast", "reduce"),
    "hierarchical": ("all_reduce",),
}
"""The collectives each algorithm has."""


def bounds(elements: int, parts: int) -> list[int]:
    """Where ``parts`` shares of ``elements`` begin, and where the last one ends; shares differ by one element at most."""
    return [elements * part // parts for part in range(parts + 1)]


def share_sizes(elements: int, parts: int) -> list[int]:
    """The elements of each of ``parts`` shares."""
    cuts = bounds(elements, parts)
    return [end - start for start, end in pairwise(cuts)]


@dataclass(frozen=True)
class Traffic:
    """What each rank moves in one collective, in bytes.

    Attributes:
        sent: bytes each rank sends.
        received: bytes each rank receives.
    """

    sent: tuple[int, ...]
    received: tuple[int, ...]

    @property
    def most_sent(self) -> int:
        """Bytes sent by the rank that sends most."""
        return max(self.sent)

    def seconds(self, bandwidth: float) -> float:
        """Seconds at least over full-duplex links of ``bandwidth`` bytes a second each way."""
        return max(*self.sent, *self.received) / bandwidth


@lru_cache(maxsize=1024)  # a step asks for the same few over and over
def traffic(collective: str, algorithm: str, elements: int, width: int, ranks: int, root: int = 0, node: int | None = None) -> Traffic:
    """What each rank moves in ``collective`` by ``algorithm``.

    Args:
        elements: of the tensor: the whole one, of which a share is scattered or gathered.
        width: bytes of an element.
        root: the rank that broadcasts, reduces or gathers.
        node: ranks a node, for ``hierarchical``.
    """
    assert collective in ALGORITHMS[algorithm], f"{algorithm} has no {collective}"
    if algorithm == "tree":
        return _scaled(_tree(collective, elements, ranks, root), width)
    if algorithm == "hierarchical":
        assert node is not None, "hierarchical needs the ranks a node"
        inner, outer = node_traffic(elements, width, ranks, node)
        return _sum([inner, outer])
    if algorithm == "backend":
        return _scaled(_gloo(collective, elements, ranks, root), width)
    return _scaled(_ring(collective, elements, ranks, root), width)


def node_traffic(elements: int, width: int, ranks: int, node: int) -> tuple[Traffic, Traffic]:
    """What each rank moves in a hierarchical all-reduce inside its node of ``node`` ranks, and between nodes.

    Inside, a reduce-scatter and an all-gather: 2 (g - 1) / g S. Between N nodes, a ring all-reduce of a share of S / g by every
    rank: 2 (N - 1) / N S / g.
    """
    inside = _ring("all_reduce", elements, node, 0)
    between = [_ring("all_reduce", share, ranks // node, 0) for share in share_sizes(elements, node)]
    outer = Traffic(
        tuple(between[rank % node].sent[rank // node] for rank in range(ranks)),
        tuple(between[rank % node].received[rank // node] for rank in range(ranks)),
    )
    inner = Traffic(inside.sent * (ranks // node), inside.received * (ranks // node))
    return _scaled(inner, width), _scaled(outer, width)


def hierarchical_seconds(elements: int, width: int, ranks: int, node: int, inner: float, outer: float) -> float:
    """Seconds a hierarchical all-reduce takes at least, its phases one after another.

    Args:
        inner: bytes a second each way of a rank's link inside its node.
        outer: bytes a second each way of a rank's link to other nodes: a node's network divided by the ranks that share it.
    """
    inside, between = node_traffic(elements, width, ranks, node)
    return inside.seconds(inner) + between.seconds(outer)


def helped_bounds(elements: int, workers: int, helpers: int) -> list[int]:
    """Where the shares that workers, and then helpers, sum of a tensor begin, and where the last one ends.

    A worker that sums a share x sends the rest, 1 - x, and its sum n - 1 times; a helper that sums y sends it n times. Both links
    are equally full, and n x + k y = 1, where x = (n - k) / d and y = 2 (n - 1) / d with d = n^2 + k n - 2 k. More than n helpers
    cannot help: workers sum nothing then and send the whole tensor once, as with n.
    """
    if workers == 1:
        return [0] + [elements] * (1 + helpers)
    parts = [max(0, workers - helpers)] * workers + [2 * (workers - 1)] * helpers
    whole = sum(parts)
    return [elements * before // whole for before in accumulate(parts, initial=0)]


def helped_traffic(elements: int, width: int, workers: int, helpers: int) -> Traffic:
    """What each worker, and then each helper, moves in an all-reduce with helpers (Jiang et al., OSDI 2020)."""
    if workers == 1:
        return Traffic((0,) * (1 + helpers), (0,) * (1 + helpers))
    cuts = helped_bounds(elements, workers, helpers)
    sizes = [end - start for start, end in pairwise(cuts)]
    of_workers = [elements + (workers - 2) * size for size in sizes[:workers]]
    moved = tuple(width * count for count in (*of_workers, *(workers * size for size in sizes[workers:])))
    return Traffic(moved, moved)


def helped_seconds(size: int, workers: int, helpers: int, bandwidth: float) -> float:
    """Seconds at least of an all-reduce of ``size`` bytes with helpers: 2 n (n - 1) / (n^2 + k n - 2 k) S / B up to k = n helpers."""
    if workers == 1:
        return 0.0
    helpers = min(workers, helpers)
    return 2 * workers * (workers - 1) / (workers**2 + helpers * (workers - 2)) * size / bandwidth


def least_seconds(collective: str, size: int, ranks: int, bandwidth: float) -> float:
    """Seconds below which no algorithm can stay for a tensor of ``size`` bytes: the last column of the table above."""
    if ranks == 1:
        return 0.0
    share = (ranks - 1) / ranks
    return {"all_reduce": 2 * share, "broadcast": 1.0, "reduce": 1.0}.get(collective, share) * size / bandwidth


# --- algorithms, in elements ---------------------------------------------------------------------------------------------


def _ring(collective: str, elements: int, ranks: int, root: int) -> Traffic:
    sizes = share_sizes(elements, ranks)
    if collective == "gather":
        sent = tuple(0 if rank == root else sizes[rank] for rank in range(ranks))
        return Traffic(sent, tuple(sum(sent) if rank == root else 0 for rank in range(ranks)))
    if collective in ("broadcast", "reduce"):
        # A chain: from the root to the rank before it, or from the rank after it to the root.
        first, last = (root, (root - 1) % ranks) if collective == "broadcast" else ((root + 1) % ranks, root)
        sent = tuple(0 if rank == last else elements for rank in range(ranks))
        return Traffic(sent, tuple(0 if rank == first else elements for rank in range(ranks)))
    # A rank scatters all shares but its own, and gathers all but that of the rank after it: that one has its own.
    scattered = Traffic(
        tuple(elements - sizes[rank] for rank in range(ranks)), tuple(elements - sizes[(rank - 1) % ranks] for rank in range(ranks))
    )
    gathered = Traffic(
        tuple(elements - sizes[(rank + 1) % ranks] for rank in range(ranks)), tuple(elements - sizes[rank] for rank in range(ranks))
    )
    return {"reduce_scatter": scattered, "all_gather": gathered}.get(collective) or _sum([scattered, gathered])


def _tree(collective: str, elements: int, ranks: int, root: int) -> Traffic:
    trees = two_trees(ranks, None if collective == "all_reduce" else root)
    moved = []
    for tree, half in zip(trees, share_sizes(elements, 2), strict=True):
        up = tuple(half * (tree.parents[rank] is not None) for rank in range(ranks))
        down = tuple(half * len(tree.children(rank)) for rank in range(ranks))
        moved += [Traffic(up, down)] * (collective != "broadcast") + [Traffic(down, up)] * (collective != "reduce")
    return _sum(moved)


def _gloo(collective: str, elements: int, ranks: int, root: int) -> Traffic:
    """What gloo moves, in our formulas: its reduce-scatter is an all-reduce underneath, its broadcast a binomial tree.

    Read off the interfaces of four hosts, within 0.5 %, reduce within 11 %. Another backend may choose other algorithms.
    """
    if collective == "broadcast":
        return _binomial(elements, ranks, root)
    if collective == "reduce":  # a reduce-scatter around the ring, and a gather
        return _sum([_ring("reduce_scatter", elements, ranks, root), _ring("gather", elements, ranks, root)])
    return _ring("all_reduce" if collective == "reduce_scatter" else collective, elements, ranks, root)


def _binomial(elements: int, ranks: int, root: int) -> Traffic:
    """Place p gets the tensor from p less its highest bit, and sends it to p + 2^k for every 2^k above p."""
    sent, received = [0] * ranks, [0] * ranks
    for place in range(1, ranks):
        sent[(root + place - (1 << (place.bit_length() - 1))) % ranks] += elements
        received[(root + place) % ranks] += elements
    return Traffic(tuple(sent), tuple(received))


def _sum(parts: Sequence[Traffic]) -> Traffic:
    sent = zip(*(part.sent for part in parts), strict=True)
    received = zip(*(part.received for part in parts), strict=True)
    return Traffic(tuple(map(sum, sent)), tuple(map(sum, received)))


def _scaled(elements: Traffic, width: int) -> Traffic:
    return Traffic(tuple(width * count for count in elements.sent), tuple(width * count for count in elements.received))
