"""Halves: gradients travel as fp16 or bf16 through an ordinary all-reduce."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from dml_runner.comm.links import Links
from dml_runner.comm.wires.base import AllReduce, others
from dml_runner.comm.wires.buffers import Buffers
from dml_runner.comm.wires.codecs import Bf16, Fp16, largest_of


class HalfWire:
    """fp16 or bf16 through an ordinary all-reduce: half the bytes, and every hop adds in the wire's type.

    A hop that added in fp32 would round its sum for the next one all the same. fp16 is scaled by one power of two, the same
    on all ranks, found from the largest value of all, so that the sum of ``n`` ranks neither overflows nor loses what is small.
    Finite values stay finite where n times the largest is below 2^127.
    """

    def __init__(self, codec: Fp16 | Bf16, all_reduce: AllReduce) -> None:
        self._codec = codec
        self._all_reduce = all_reduce
        self._buffers = Buffers()

    def all_reduce(self, links: Links, key: int, flat: Tensor, parts: Sequence[Tensor]) -> None:
        """As in Wire."""
        if links.size == 1:
            return
        (message,) = self._buffers.pieces([self._codec.size(flat.numel())], flat.device)
        if isinstance(self._codec, Fp16):
            self._codec.encode(flat, message, largest_of_all(links, flat) * links.size)
        else:
            self._codec.encode(flat, message)
        self._all_reduce(links, self._codec.halves(message))
        self._codec.decode(message, flat.numel(), out=flat)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Nothing is remembered."""
        return iter(())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is remembered."""
        assert not state, f"{self._codec.name} remembers nothing"


def largest_of_all(links: Links, flat: Tensor) -> Tensor:
    """The largest absolute value on any rank, of shape (1,); NaN where one is NaN."""
    everyone = largest_of(flat).repeat(links.size)
    peers = others(links)
    mine = everyone[links.rank : links.rank + 1]
    links.exchange([(mine, other) for other in peers], [(everyone[other : other + 1], other) for other in peers]).wait()
    return everyone.amax(0, keepdim=True)
