"""Collectives over two binary trees at once, each carrying half of the tensor, in chunks.

Sanders, Speck and Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan" (2009): a rank
is an inner node of one tree at most and a leaf of the other, so that both directions of its link are busy, and the depth grows with
log2 n where a ring's grows with n. Each element is summed once, along one tree, and then copied, so all ranks end with the same
bits, and every run gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dml_runner.comm.links import Links, Message
from dml_runner.comm.pipeline import CHAIN_AHEAD, CHAIN_CHUNKS, Incoming, Turn, check_sum, chunk_count, flat, run, shares
from dml_runner.comm.trees import BinaryTree, two_trees


def all_reduce(links: Links, tensor: Tensor, chunk_bytes: int | None = None) -> None:
    """Sum ``tensor`` (contiguous, any shape, the same on all ranks) over the ranks, in place on every rank.

    Sums go up a tree while those that reached its root go down: a rank sends about two tensors at most.

    Raises:
        ConfigError: the type has no sum.
        PeerLost: a peer died.
    """
    check_sum(tensor)
    _both(links, tensor, two_trees(links.size), True, True, chunk_bytes)


def broadcast(links: Links, tensor: Tensor, root: int = 0, chunk_bytes: int | None = None) -> None:
    """Fill ``tensor`` with that of ``root``, which feeds both trees of the others; a rank sends one tensor at most."""
    _both(links, tensor, two_trees(links.size, root), False, True, chunk_bytes)


def reduce(links: Links, tensor: Tensor, root: int = 0, chunk_bytes: int | None = None) -> None:
    """Sum ``tensor`` over the ranks into that of ``root``; on the others it holds sums of some ranks afterwards.

    Raises as ``all_reduce``.
    """
    check_sum(tensor)
    _both(links, tensor, two_trees(links.size, root), True, False, chunk_bytes)


def _both(links: Links, tensor: Tensor, trees: tuple[BinaryTree, BinaryTree], up: bool, down: bool, chunk_bytes: int | None) -> None:
    """Run both trees beat by beat: sums climb them, or what the root has goes down, or both."""
    count = chunk_count(-(-tensor.numel() // 2), tensor.element_size(), chunk_bytes, CHAIN_CHUNKS)
    halves = [shares(half, count) for half in shares(flat(tensor), 2)]
    schedules = [_turns(links.rank, tree, half, up, down) for tree, half in zip(trees, halves, strict=True)]
    run(links, (_joined(*turns) for turns in zip(*schedules, strict=True)), CHAIN_AHEAD)


def _turns(rank: int, tree: BinaryTree, chunks: list[Tensor], up: bool, down: bool) -> Iterator[Turn]:
    """What ``rank`` does at each beat. A chunk climbs, or goes down, one level every CHAIN_AHEAD beats."""
    parent, children, top = tree.parents[rank], tree.children(rank), tree.height(tree.root)
    climbed = top if up else 0
    for beat in range(CHAIN_AHEAD * (climbed + top if down else climbed) + len(chunks)):
        outgoing: list[Message] = []
        incoming: list[Incoming] = []

        def at(level: int, beat: int = beat) -> list[Tensor]:
            """The chunk that leaves ``level`` at this beat, if there is one."""
            return chunks[beat - CHAIN_AHEAD * level : beat - CHAIN_AHEAD * level + 1] if beat >= CHAIN_AHEAD * level else []

        if up:
            outgoing += [(chunk, parent) for chunk in at(tree.height(rank)) if parent is not None]
            incoming += [Incoming(chunk, child, added=True) for child in children for chunk in at(tree.height(child))]
        if down:
            outgoing += [(chunk, child) for child in children for chunk in at(climbed + tree.depth(rank))]
            incoming += [Incoming(chunk, parent) for chunk in at(climbed + tree.depth(rank) - 1) if parent is not None]
        yield Turn(outgoing, incoming)


def _joined(first: Turn, second: Turn) -> Turn:
    """Both trees' messages of one beat, in the same order on both ends of a link."""
    return Turn([*first.outgoing, *second.outgoing], [*first.incoming, *second.incoming])
