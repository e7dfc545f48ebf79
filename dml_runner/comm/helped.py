"""All-reduce with helpers: spare peers that only sum, so that the links of those who train carry less (Jiang et al., OSDI 2020).

Of n + k peers the first n are workers, each with a tensor; the k after them are helpers. Everyone sums a share of the tensor: it
receives that share from each worker and sends the sum to each worker. The shares (``laws.helped_bounds``) fill all links equally.
A sum is made once, in the order of the workers, so all of them end with the same bits, and with the same for any number of helpers.

The tensor passes in rounds, a piece of every share in each. The sums of a round travel with the parts of the next one, so
that a link is busy both ways from the first round on. A worker begins a round when it has all sums of the round AHEAD
before: the links of helpers are full and those between workers often are not, so that a worker which sent all it has at once
would be done with the other workers first, and leave its link half empty while helpers are still receiving.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dml_runner.comm.laws import helped_bounds, share_sizes
from dml_runner.comm.links import Exchange, Links
from dml_runner.comm.pipeline import LARGEST, check_sum, flat

ROUNDS = 48
"""Rounds where the caller does not say how large a message may be: the last one's way through is what the law does not count."""
SMALLEST = 1 << 16
"""Bytes of the largest message of a round, at least, there: of many rounds with less, calls would cost more."""
AHEAD = 3
"""Rounds a worker may begin before it has the sums of the first of them."""
POSTED = 2 * AHEAD
"""Rounds whose receives are posted: no peer is further ahead."""
SLOTS = POSTED + AHEAD
"""Rounds there is room for: a helper's sum stays in it until it is sent."""


def all_reduce(links: Links, tensor: Tensor, workers: int, chunk_bytes: int | None = None) -> None:
    """Sum ``tensor`` over the workers, in place; each of them calls it, while each helper calls ``serve``.

    Args:
        links: workers and then helpers; this peer is a worker.
        tensor: contiguous, in host memory, any shape, the same on all workers.
        workers: how many of the peers.
        chunk_bytes: bytes of one message at most, the same on all peers; None: by the size of the tensor.

    Raises:
        ConfigError: the type has no sum.
        PeerLost: a peer died.
    """
    check_sum(tensor)
    if workers == 1:
        return
    sizes, me = _pieces(links, tensor.numel(), tensor.dtype, workers, chunk_bytes), links.rank
    cut = flat(tensor).split([sum(of_share) for of_share in sizes])
    pieces = [share.split(of_share) for share, of_share in zip(cut, sizes, strict=True)]
    everyone, others = [peer for peer in range(links.size) if peer != me], [peer for peer in range(workers) if peer != me]
    parts, count = _Parts(links, others, sizes[me], tensor.dtype), len(sizes[me])
    sums: deque[Exchange] = deque()
    sending: list[Exchange] = []
    posted = 0
    for beat in range(count + AHEAD):
        while posted <= min(beat + POSTED - 1, count):  # in the order in which each peer sends
            if posted < count:
                parts.post(posted)
            if posted > 0:
                sums.append(links.exchange([], [(pieces[peer][posted - 1], peer) for peer in everyone]))
            posted += 1
        if beat >= AHEAD:
            sums.popleft().wait()
        if beat < count:
            sending.append(links.exchange([(pieces[peer][beat], peer) for peer in everyone], []))
        if 0 < beat <= count:
            total = pieces[me][beat - 1]
            _add(total, parts.take(beat - 1), me)
            sending.append(links.exchange([(total, peer) for peer in others], []))
    for sent in sending:
        sent.wait()
    parts.leave()


def serve(links: Links, elements: int, dtype: torch.dtype, workers: int, chunk_bytes: int | None = None) -> None:
    """A helper's side of one ``all_reduce`` of so many ``elements``. Raises as that."""
    if workers == 1:
        return
    sizes, everyone = _pieces(links, elements, dtype, workers, chunk_bytes)[links.rank], range(workers)
    parts = _Parts(links, everyone, sizes, dtype)
    sending: list[Exchange] = []
    posted = 0
    for beat in range(len(sizes)):
        while posted < min(beat + POSTED, len(sizes)):
            if posted >= SLOTS:
                sending[posted - SLOTS].wait()
            parts.post(posted)
            posted += 1
        total, *others = parts.take(beat)
        _add(total, others, 0)
        sending.append(links.exchange([(total, peer) for peer in everyone], []))
    for sent in sending:
        sent.wait()
    parts.leave()


def announce(links: Links, workers: int, sizes: Sequence[int]) -> None:
    """Tell every helper the elements of the tensors that will be summed in each step, in their order; worker 0 does."""
    if links.rank == 0:
        for word in (torch.tensor([len(sizes)]), torch.tensor(list(sizes), dtype=torch.int64)):
            links.exchange([(word, helper) for helper in range(workers, links.size)], []).wait()


def listen(links: Links) -> list[int]:
    """What worker 0 announces to this helper."""
    count = torch.zeros(1, dtype=torch.int64)
    links.receive(count, 0).wait()
    sizes = torch.zeros(int(count), dtype=torch.int64)
    links.receive(sizes, 0).wait()
    return sizes.tolist()


class _Parts:
    """The parts of this peer's share that workers send, in room for SLOTS rounds that is used over and over."""

    def __init__(self, links: Links, peers: Sequence[int], sizes: Sequence[int], dtype: torch.dtype) -> None:
        self._links, self._peers, self._sizes = links, peers, sizes
        self._posted: dict[int, Exchange] = {}
        shape = (min(SLOTS, len(sizes)), len(peers), max(sizes))
        needed = shape[0] * shape[1] * shape[2] * dtype.itemsize
        # a buffer of the step before: fresh memory costs as much as a copy
        spare = links.buffers.pop() if links.buffers else torch.empty(0, dtype=torch.uint8)
        self._buffer = spare if spare.numel() >= needed else torch.empty(needed, dtype=torch.uint8)
        self._room = self._buffer[:needed].view(dtype).view(shape)

    def post(self, number: int) -> None:
        """Begin to receive round ``number``."""
        self._posted[number] = self._links.exchange([], list(zip(self._at(number), self._peers, strict=True)))

    def take(self, number: int) -> list[Tensor]:
        """Round ``number``, once it has come, in the order of the workers."""
        self._posted.pop(number).wait()
        return self._at(number)

    def leave(self) -> None:
        """Give the room back."""
        self._links.buffers.append(self._buffer)

    def _at(self, number: int) -> list[Tensor]:
        return [row[: self._sizes[number]] for row in self._room[number % len(self._room)]]


def _pieces(links: Links, elements: int, dtype: torch.dtype, workers: int, chunk_bytes: int | None) -> list[list[int]]:
    """Elements of every share's pieces, one for each round."""
    cuts = helped_bounds(elements, workers, links.size - workers)
    of_shares = [end - start for start, end in pairwise(cuts)]
    largest = max(of_shares) * dtype.itemsize
    size = min(LARGEST, max(SMALLEST, largest // ROUNDS)) if chunk_bytes is None else chunk_bytes
    count = max(1, -(-largest // size))
    return [share_sizes(share, count) for share in of_shares]


def _add(own: Tensor, others: Sequence[Tensor], place: int) -> None:
    """Add ``others`` to ``own``, which stands before ``others[place]``, as if all were added from left to right."""
    if place:
        before = others[0]
        for other in others[1:place]:
            before.add_(other)
        own.add_(before)
    for other in others[place:]:
        own.add_(other)
