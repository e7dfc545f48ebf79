"""One door to every collective: by the name of its algorithm, ``backend``, ``ring``, ``tree`` or ``hierarchical``.

``laws.ALGORITHMS`` says which algorithm has which collective. Tensors are contiguous and of the same type and size on all ranks; all
work is in place. Where a tensor is scattered or gathered, rank r owns share r of n that differ by one element at most
(``laws.bounds``).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dml_runner.comm import backend, hierarchical, ring, tree
from dml_runner.comm.laws import ALGORITHMS
from dml_runner.comm.links import Links
from dml_runner.errors import ConfigError, Problem

Algorithm = Literal["backend", "ring", "tree", "hierarchical"]


def all_reduce(links: Links, tensor: Tensor, algorithm: Algorithm, node: int | None = None, chunk_bytes: int | None = None) -> None:
    """Sum ``tensor`` over the ranks, in place on every rank.

    Args:
        node: ranks a node, for ``hierarchical``; None: all of them on one.
        chunk_bytes: bytes of one message at most; None: by the size of the tensor. The backend chooses its own.

    Raises:
        ConfigError: no such algorithm, ranks that do not fill the nodes, or a type that has no sum.
        RuntimeError: a rank died, or nothing came within the group's time limit.
    """
    if algorithm == "backend":
        backend.all_reduce(links, tensor)
    elif algorithm == "ring":
        ring.all_reduce(links, tensor, chunk_bytes)
    elif algorithm == "tree":
        tree.all_reduce(links, tensor, chunk_bytes)
    elif algorithm == "hierarchical":
        hierarchical.all_reduce(links, tensor, links.size if node is None else node, chunk_bytes)
    else:
        raise _unknown("all_reduce", algorithm)


def reduce_scatter(links: Links, tensor: Tensor, algorithm: Algorithm, chunk_bytes: int | None = None) -> Tensor:
    """This rank's share of the sum, as a view of ``tensor``, whose other shares may be changed. Raises as ``all_reduce``."""
    if algorithm == "backend":
        return backend.reduce_scatter(links, tensor)
    if algorithm == "ring":
        return ring.reduce_scatter(links, tensor, chunk_bytes)
    raise _unknown("reduce_scatter", algorithm)


def all_gather(links: Links, tensor: Tensor, algorithm: Algorithm, chunk_bytes: int | None = None) -> None:
    """Fill ``tensor``, in which each rank has its own share, with everyone's. Raises as ``all_reduce``."""
    if algorithm == "backend":
        backend.all_gather(links, tensor)
    elif algorithm == "ring":
        ring.all_gather(links, tensor, chunk_bytes)
    else:
        raise _unknown("all_gather", algorithm)


def gather(links: Links, tensor: Tensor, algorithm: Algorithm, root: int = 0) -> None:
    """Fill ``tensor`` on ``root`` with everyone's share. Raises as ``all_reduce``."""
    if algorithm == "backend":
        backend.gather(links, tensor, root)
    elif algorithm == "ring":
        ring.gather(links, tensor, root)
    else:
        raise _unknown("gather", algorithm)


def broadcast(links: Links, tensor: Tensor, algorithm: Algorithm, root: int = 0, chunk_bytes: int | None = None) -> None:
    """Fill ``tensor`` with that of ``root``. Raises as ``all_reduce``."""
    if algorithm == "backend":
        backend.broadcast(links, tensor, root)
    elif algorithm == "ring":
        ring.broadcast(links, tensor, root, chunk_bytes)
    elif algorithm == "tree":
        tree.broadcast(links, tensor, root, chunk_bytes)
    else:
        raise _unknown("broadcast", algorithm)


def reduce(links: Links, tensor: Tensor, algorithm: Algorithm, root: int = 0, chunk_bytes: int | None = None) -> None:
    """Sum ``tensor`` over the ranks into that of ``root``; elsewhere it may be changed. Raises as ``all_reduce``."""
    if algorithm == "backend":
        backend.reduce(links, tensor, root)
    elif algorithm == "ring":
        ring.reduce(links, tensor, root, chunk_bytes)
    elif algorithm == "tree":
        tree.reduce(links, tensor, root, chunk_bytes)
    else:
        raise _unknown("reduce", algorithm)


def _unknown(collective: str, algorithm: str) -> ConfigError:
    allowed = ", ".join(name for name, has in ALGORITHMS.items() if collective in has)
    return ConfigError(Problem("algorithm", f"there is no such {collective}", got=algorithm, allowed=allowed))
