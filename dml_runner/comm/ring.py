"""Collectives around a ring: every rank sends to the next one only, in chunks that follow each other closely.

All-reduce is a reduce-scatter and an all-gather (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", 2009): each rank sends 2 (n - 1) / n of the tensor, which no schedule can beat. Each element is summed
once, in the order of the ring, and then copied, so all ranks end with the same bits, and every run gives the same.

The tensor is divided into n shares that differ by one element at most; rank r owns share r.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dml_runner.comm.links import Links
from dml_runner.comm.pipeline import (
    CHAIN_AHEAD,
    CHAIN_CHUNKS,
    RING_AHEAD,
    RING_CHUNKS,
    Incoming,
    Turn,
    check_sum,
    chunk_count,
    flat,
    run,
    shares,
)


def all_reduce(links: Links, tensor: Tensor, chunk_bytes: int | None = None) -> None:
    """Sum ``tensor`` (contiguous, any shape, the same on all ranks) over the ranks, in place on every rank.

    Raises:
        ConfigError: the type has no sum.
        PeerLost: a peer died.
    """
    check_sum(tensor)
    pieces = _pieces(links, tensor, chunk_bytes)
    _around(links, pieces, [*_reduce_scatter(links, pieces), *_all_gather(links, pieces)])


def reduce_scatter(links: Links, tensor: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """This rank's share of the sum, as a view of ``tensor``, whose other shares hold sums of some ranks afterwards.

    Each rank sends (n - 1) / n of the tensor. Raises as ``all_reduce``.
    """
    check_sum(tensor)
    pieces = _pieces(links, tensor, chunk_bytes)
    _around(links, pieces, list(_reduce_scatter(links, pieces)))
    return shares(flat(tensor), links.size)[links.rank]


def all_gather(links: Links, tensor: Tensor, chunk_bytes: int | None = None) -> None:
    """Fill ``tensor``, in which each rank has its own share, with everyone's. Each rank sends (n - 1) / n of it, about."""
    pieces = _pieces(links, tensor, chunk_bytes)
    _around(links, pieces, list(_all_gather(links, pieces)))


def gather(links: Links, tensor: Tensor, root: int = 0) -> None:
    """Fill ``tensor`` on ``root`` with everyone's share, each sent straight to it: passing them on would only add bytes."""
    parts = shares(flat(tensor), links.size)
    if links.rank == root:
        links.exchange([], [(part, peer) for peer, part in enumerate(parts) if peer != root]).wait()
    else:
        links.send(parts[links.rank], root).wait()


def broadcast(links: Links, tensor: Tensor, root: int = 0, chunk_bytes: int | None = None) -> None:
    """Fill ``tensor`` with that of ``root``, passed on from rank to rank; all but the last rank send it once."""
    chunks = _chunks(tensor, chunk_bytes)
    place, last = (links.rank - root) % links.size, links.size - 1
    after, before = (links.rank + 1) % links.size, (links.rank - 1) % links.size
    turns = []
    for beat in range(CHAIN_AHEAD * last + len(chunks)):
        out, came = beat - CHAIN_AHEAD * place, beat - CHAIN_AHEAD * (place - 1)  # the chunk that is at this place at this beat
        outgoing = [(chunks[out], after)] if place < last and 0 <= out < len(chunks) else []
        incoming = [Incoming(chunks[came], before)] if place > 0 and 0 <= came < len(chunks) else []
        turns.append(Turn(outgoing, incoming))
    run(links, turns, CHAIN_AHEAD)


def reduce(links: Links, tensor: Tensor, root: int = 0, chunk_bytes: int | None = None) -> None:
    """Sum ``tensor`` over the ranks into that of ``root``; on the others it holds sums of some ranks afterwards.

    All but ``root`` send it once. Raises as ``all_reduce``.
    """
    check_sum(tensor)
    chunks = _chunks(tensor, chunk_bytes)
    place, last = (links.rank - root - 1) % links.size, links.size - 1
    after, before = (links.rank + 1) % links.size, (links.rank - 1) % links.size
    turns = []
    for beat in range(CHAIN_AHEAD * last + len(chunks)):
        out, came = beat - CHAIN_AHEAD * place, beat - CHAIN_AHEAD * (place - 1)
        outgoing = [(chunks[out], after)] if place < last and 0 <= out < len(chunks) else []
        incoming = [Incoming(chunks[came], before, added=True)] if place > 0 and 0 <= came < len(chunks) else []
        turns.append(Turn(outgoing, incoming))
    run(links, turns, CHAIN_AHEAD)


def _chunks(tensor: Tensor, chunk_bytes: int | None) -> list[Tensor]:
    return shares(flat(tensor), chunk_count(tensor.numel(), tensor.element_size(), chunk_bytes, CHAIN_CHUNKS))


def _pieces(links: Links, tensor: Tensor, chunk_bytes: int | None) -> list[list[Tensor]]:
    """The chunks of every share: as many in each, so that chunk c of one share follows chunk c of another."""
    count = chunk_count(-(-tensor.numel() // links.size), tensor.element_size(), chunk_bytes, RING_CHUNKS)
    return [shares(share, count) for share in shares(flat(tensor), links.size)]


def _reduce_scatter(links: Links, pieces: list[list[Tensor]]) -> Iterator[Turn]:
    """Share r starts its way at rank r + 1 and is complete when it comes to rank r."""
    after, before = (links.rank + 1) % links.size, (links.rank - 1) % links.size
    for step in range(links.size - 1):
        out, came = pieces[(links.rank - step - 1) % links.size], pieces[(links.rank - step - 2) % links.size]
        for chunk, added in zip(out, came, strict=True):
            yield Turn([(chunk, after)], [Incoming(added, before, added=True)])


def _all_gather(links: Links, pieces: list[list[Tensor]]) -> Iterator[Turn]:
    """Share r starts its way at rank r."""
    after, before = (links.rank + 1) % links.size, (links.rank - 1) % links.size
    for step in range(links.size - 1):
        out, came = pieces[(links.rank - step) % links.size], pieces[(links.rank - step - 1) % links.size]
        for chunk, filled in zip(out, came, strict=True):
            yield Turn([(chunk, after)], [Incoming(filled, before)])


def _around(links: Links, pieces: list[list[Tensor]], turns: list[Turn]) -> None:
    """A turn sends what the turn one share before received, so no more turns than a share has chunks may be under way."""
    run(links, turns, min(RING_AHEAD, len(pieces[0])))
