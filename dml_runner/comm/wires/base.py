"""A wire: how a bucket of gradients is summed over ranks in fewer bytes than it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from dml_runner.comm.links import Links

AllReduce = Callable[[Links, Tensor], None]
"""An ordinary all-reduce, which sums a flat tensor in place and leaves all ranks with the same bits."""


class Wire(Protocol):
    """How gradients are summed in fewer bytes. After it all ranks hold the same bits (powersgd: those on like hardware)."""

    def all_reduce(self, links: Links, key: int, flat: Tensor, parts: Sequence[Tensor]) -> None:
        """Sum ``flat`` in place over the ranks of ``links``.

        Args:
            links: the ranks; alone, nothing is done.
            key: names the bucket: what is remembered from one step to the next is remembered under it.
            flat: a bucket of gradients, contiguous, one-dimensional, fp32.
            parts: the gradients in it, contiguous views of ``flat`` in their own shapes, which together cover it.

        Raises:
            PeerLost: a rank died, or the group's time limit passed.
        """

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """What this rank remembers, by name; the next step changes these tensors. Nothing for fp16 and bf16."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember ``state`` instead, as copies; the ranks and buckets must be those it was remembered with."""


def others(links: Links) -> list[int]:
    """All peers but this one, beginning with the next: so no two ranks send to the same one first."""
    return [(links.rank + step) % links.size for step in range(1, links.size)]
