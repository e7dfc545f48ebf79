"""All-reduce over nodes of several ranks: little crosses the network between nodes, as fast links inside them do most.

Three phases: a reduce-scatter inside each node, an all-reduce of every share among the ranks that hold it, one a node, and an
all-gather inside each node. So a rank sends 2 (g - 1) / g of the tensor inside its node of g ranks, and 2 (N - 1) / N of a share of
1 / g to the N - 1 other nodes (Cho et al., "BlueConnect", 2019, with two levels). The phases are rings, so
all ranks end with the same bits, and every run gives the same.
"""

from __future__ import annotations

from torch import Tensor

from dml_runner.comm import ring
from dml_runner.comm.links import Links
from dml_runner.errors import ConfigError, Problem


def all_reduce(links: Links, tensor: Tensor, node: int, chunk_bytes: int | None = None) -> None:
    """Sum ``tensor`` (contiguous, any shape, the same on all ranks) over the ranks, in place on every rank.

    Args:
        node: ranks a node; node k holds ranks k x node to (k + 1) x node - 1.

    Raises:
        ConfigError: the ranks do not fill nodes of ``node``, or the type has no sum.
        PeerLost: a peer died.
    """
    check_nodes(links.size, node)
    first = links.rank // node * node
    inside = links.part(range(first, first + node))
    across = links.part(range(links.rank % node, links.size, node))
    assert inside is not None
    assert across is not None
    share = ring.reduce_scatter(inside, tensor, chunk_bytes)
    ring.all_reduce(across, share, chunk_bytes)
    ring.all_gather(inside, tensor, chunk_bytes)


def check_nodes(ranks: int, node: int) -> None:
    """Refuse ``node`` ranks a node where they leave a node that is not full.

    Raises:
        ConfigError: they do.
    """
    if node < 1 or ranks % node:
        sizes = ", ".join(str(size) for size in range(1, ranks + 1) if ranks % size == 0)
        raise ConfigError(Problem("node", f"{ranks} ranks do not fill nodes of this many", got=str(node), allowed=sizes))
