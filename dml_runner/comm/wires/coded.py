"""Coded wires: int8 and onebit, which only their receiver can add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dml_runner.comm.laws import bounds
from dml_runner.comm.links import Exchange, Links
from dml_runner.comm.wires.base import others
from dml_runner.comm.wires.buffers import Buffers
from dml_runner.comm.wires.codecs import Int8, OneBit
from dml_runner.comm.wires.memory import Memory


class CodedWire:
    """int8 or onebit in two phases, as coded values cannot be added on their way (Tang et al. 2021, 1-bit Adam, algorithm 1).

    Every rank owns a share of the bucket. It sends each owner that share, coded; the owner decodes, adds in fp32 (its own values
    whole), codes the sum and sends it to all. Both codings have a memory of what they lost.

    Args:
        codec: of both phases.
        feedback: False forgets what was lost (see Memory).
    """

    def __init__(self, codec: Int8 | OneBit, feedback: bool = True) -> None:
        self._codec = codec
        self._memory = Memory(feedback)
        self._messages, self._arrivals, self._decoded = Buffers(), Buffers(), Buffers()

    def all_reduce(self, links: Links, key: int, flat: Tensor, parts: Sequence[Tensor]) -> None:
        """As in Wire."""
        if links.size == 1:
            return
        cuts = bounds(flat.numel(), links.size)
        shares = [flat[start:end] for start, end in pairwise(cuts)]
        mine = shares[links.rank]
        for arriving in self._deal(links, key, shares):
            (room,) = self._decoded.pieces([mine.nbytes], mine.device)
            mine.add_(self._codec.decode(arriving, mine.numel(), out=room.view(torch.float32)))
        for share, arriving in zip(shares, self._spread(links, key, shares), strict=True):
            self._codec.decode(arriving, share.numel(), out=share)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The errors of each share sent, ``<key>/<peer>``, and of the own sum, ``<key>/sum``."""
        return self._memory.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """As in Wire."""
        self._memory.restore(state)

    def _deal(self, links: Links, key: int, shares: Sequence[Tensor]) -> Iterator[Tensor]:
        """Send each peer its share; yields what the others send of ours. The next share is coded while the last one travels."""
        peers = others(links)
        messages = self._room(self._messages, [shares[to] for to in peers])
        arrivals = self._room(self._arrivals, [shares[links.rank]] * len(peers))
        on_their_way: list[Exchange] = []
        for to, message, source, arriving in zip(peers, messages, reversed(peers), arrivals, strict=True):
            self._memory.encode(self._codec, f"{key}/{to}", shares[to], message)
            on_their_way.append(links.exchange([(message, to)], [(arriving, source)]))
        for exchange, arriving in zip(on_their_way, arrivals, strict=True):
            exchange.wait()
            yield arriving

    def _spread(self, links: Links, key: int, shares: Sequence[Tensor]) -> list[Tensor]:
        """Send our share, now summed, to all; returns everyone's message, in order."""
        peers = others(links)
        arrivals = self._room(self._arrivals, shares)
        message = arrivals[links.rank]
        self._memory.encode(self._codec, f"{key}/sum", shares[links.rank], message)
        links.exchange([(message, other) for other in peers], [(arrivals[other], other) for other in peers]).wait()
        return arrivals

    def _room(self, buffers: Buffers, shares: Sequence[Tensor]) -> list[Tensor]:
        return buffers.pieces([self._codec.size(share.numel()) for share in shares], shares[0].device)
