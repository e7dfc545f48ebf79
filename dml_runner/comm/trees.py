"""The two binary trees of Sanders, Speck and Traeff (2009): whoever is an inner node of one is a leaf of the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class BinaryTree:
    """A tree over ranks.

    Attributes:
        parents: the parent of each rank, None for the root.
    """

    parents: tuple[int | None, ...]

    @property
    def root(self) -> int:
        """The rank without a parent."""
        return self.parents.index(None)

    def children(self, rank: int) -> list[int]:
        """The ranks whose parent is ``rank``."""
        return [child for child, parent in enumerate(self.parents) if parent == rank]

    def height(self, rank: int) -> int:
        """Steps from the deepest leaf below ``rank`` up to it; 0 for a leaf."""
        return max((1 + self.height(child) for child in self.children(rank)), default=0)

    def depth(self, rank: int) -> int:
        """Steps from the root down to ``rank``."""
        parent = self.parents[rank]
        return 0 if parent is None else 1 + self.depth(parent)


@cache
def two_trees(ranks: int, root: int | None = None) -> tuple[BinaryTree, BinaryTree]:
    """Two trees over ``ranks`` ranks: no rank is an inner node of both.

    Args:
        ranks: 1 or more.
        root: a rank that stands above the roots of two trees of the others (broadcast, reduce); None: there is none
            (all-reduce).
    """
    if root is not None:
        others = [(root + 1 + place) % ranks for place in range(ranks - 1)]
        first, second = (_placed(_parents(places), others, ranks, root) for places in _places(ranks - 1))
        return first, second
    first, second = (_placed(_parents(places), list(range(ranks)), ranks, None) for places in _places(ranks))
    return first, second


def _places(ranks: int) -> tuple[list[int], list[int]]:
    """The places of the ranks, in order from 1, in each tree: the second is the first mirrored, or for odd ``ranks`` shifted by one.

    Leaves have odd places and inner nodes even ones, and both ways turn even into odd.
    """
    ordered = list(range(1, ranks + 1))
    return ordered, ordered[::-1] if ranks % 2 == 0 else [*ordered[-1:], *ordered[:-1]]


def _parents(places: list[int]) -> list[int | None]:
    """The parent of each rank, as a rank, where ranks stand at ``places``."""
    above: dict[int, int | None] = {}

    def build(first: int, last: int, parent: int | None) -> None:
        """The tree over places first to last: its root leaves a full tree on its left."""
        if first > last:
            return
        top = first - 1 + (1 << ((last - first + 1).bit_length() - 1))
        above[top] = parent
        build(first, top - 1, top)
        build(top + 1, last, top)

    build(1, len(places), None)
    rank_at = {place: rank for rank, place in enumerate(places)}
    return [None if above[place] is None else rank_at[above[place]] for place in places]  # type: ignore[index]


def _placed(parents: list[int | None], names: list[int], ranks: int, root: int | None) -> BinaryTree:
    """A tree over ranks called ``names``, under ``root`` if there is one."""
    found: list[int | None] = [None] * ranks
    for rank, parent in enumerate(parents):
        found[names[rank]] = root if parent is None else names[parent]
    return BinaryTree(tuple(found))
