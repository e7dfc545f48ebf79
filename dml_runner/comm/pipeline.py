"""What the algorithms share: a tensor cut into chunks, and turns of messages of which several are on their way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dml_runner.comm.laws import bounds
from dml_runner.comm.links import Exchange, Links, Message
from dml_runner.errors import ConfigError, Problem

SMALLEST, LARGEST = 1 << 17, 1 << 22
"""Bytes of one message where the caller names none: below, calls cost more than what they move; above, nothing is gained."""
POSTED_BYTES = 1 << 23
"""Bytes of receives that are posted before their turn, at most."""
RING_CHUNKS, RING_AHEAD = 2, 4
"""Around a ring all links are busy from the first turn, so few chunks a share will do, and all of a share may be on its way."""
CHAIN_CHUNKS, CHAIN_AHEAD = 48, 2
"""Along a chain or a tree the last rank waits until the first chunk has come to it: many chunks, and two on their way, of which one
travels while the one before is added up and passed on."""

SUMMED = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64),
)
"""Types that are summed; integers wrap around."""


@dataclass(frozen=True)
class Incoming:
    """Elements to come from ``peer``: they fill ``target``, or are ``added`` to it."""

    target: Tensor
    peer: int
    added: bool = False


@dataclass(frozen=True)
class Turn:
    """What one rank does at one beat of an algorithm.

    Attributes:
        outgoing: what is sent; it must be ready when the turn ``ahead`` beats before has ended.
        incoming: what is received; from one peer in the order in which that peer sends.
    """

    outgoing: Sequence[Message] = ()
    incoming: Sequence[Incoming] = ()


class _Receives:
    """The receives of a list of turns, posted before it is their turn, as long as not too many bytes wait for their data."""

    def __init__(self, links: Links, turns: Sequence[Turn], early: bool) -> None:
        self._links, self._turns, self._early = links, turns, early
        self._next = self._waiting = 0
        self._posted: deque[tuple[Exchange, list[tuple[Tensor, Tensor]], int]] = deque()

    def post(self, number: int, outgoing: Sequence[Message]) -> Exchange | None:
        """Post those of turn ``number`` and of as many later ones as may be; on a network of batches together with ``outgoing``."""
        together = None
        while self._next <= number or (self._early and self._next < len(self._turns) and self._waiting < POSTED_BYTES):
            incoming, sums = self._targets(self._turns[self._next])
            posted = self._links.exchange([] if self._early else outgoing, incoming)
            together = None if self._early else posted
            size = sum(tensor.nbytes for tensor, _ in incoming)
            self._posted.append((posted, sums, size))
            self._waiting += size
            self._next += 1
        return together

    def end_oldest(self) -> None:
        """Wait for the receives of the oldest turn that has not ended, and add up what they brought."""
        exchange, sums, size = self._posted.popleft()
        exchange.wait()
        self._waiting -= size
        for target, buffer in sums:
            target.add_(buffer[: target.nbytes].view(target.dtype))
            self._links.buffers.append(buffer)

    def _targets(self, turn: Turn) -> tuple[list[Message], list[tuple[Tensor, Tensor]]]:
        """Where the messages of ``turn`` go, and the sums to make of them."""
        incoming, sums = [], []
        for come in turn.incoming:
            into = come.target
            if come.added:
                buffer = _buffer(into, self._links.buffers)
                sums.append((come.target, buffer))
                into = buffer[: into.nbytes].view(into.dtype)
            incoming.append((into, come.peer))
        return incoming, sums


def run(links: Links, turns: Iterable[Turn], ahead: int) -> None:
    """Take ``turns`` in order, ``ahead`` of them on their way at once: turn k starts when turn k - ``ahead`` has ended.

    CPU tensors: receives are posted before their turn, up to POSTED_BYTES of them. Data then never waits for its receive, and a
    small tensor is received without a further word to the connection, whose lock the thread that moves the data wants too. So a
    place may be filled at any moment: only ever receive into it what its present content has gone into, or what is of no use.

    CUDA tensors: the messages of a turn are one batch, so a rank must send in the turn in which its peer receives.

    Raises:
        PeerLost: a peer died, or the group's time limit passed.
    """
    listed = list(turns)
    early = not any(come.target.is_cuda for turn in listed for come in turn.incoming)
    receives = _Receives(links, listed, early)
    sends: deque[Exchange] = deque()
    for number, turn in enumerate(listed):
        if number >= ahead:
            receives.end_oldest()
            sends.popleft().wait()
        sends.append(receives.post(number, turn.outgoing) or links.exchange(turn.outgoing, []))
    for sent in sends:
        receives.end_oldest()
        sent.wait()


def _buffer(tensor: Tensor, spare: list[Tensor]) -> Tensor:
    """Bytes for all of ``tensor``, out of ``spare`` if the last ones there suffice."""
    if spare:
        buffer = spare.pop()
        if buffer.numel() >= tensor.nbytes and buffer.device == tensor.device:
            return buffer
    # Chunks of one tensor differ by one element at most: a little more fits them all.
    return torch.empty(tensor.nbytes + 64, dtype=torch.uint8, device=tensor.device)


def flat(tensor: Tensor) -> Tensor:
    """``tensor`` as one dimension of the same memory."""
    assert tensor.is_contiguous(), "collectives work in place: the tensor must be contiguous"
    return tensor.view(-1)


def shares(tensor: Tensor, parts: int) -> list[Tensor]:
    """``tensor`` (one-dimensional) cut into ``parts`` views that differ by one element at most; empty ones where it is short."""
    cuts = bounds(tensor.numel(), parts)
    return [tensor[start:end] for start, end in pairwise(cuts)]


def chunk_count(elements: int, width: int, chunk_bytes: int | None, wanted: int) -> int:
    """Chunks that ``elements`` of ``width`` bytes are cut into.

    Of ``chunk_bytes`` at most; None: ``wanted`` of them, or as many as keeps them between SMALLEST and LARGEST.
    """
    size = min(LARGEST, max(SMALLEST, elements * width // wanted)) if chunk_bytes is None else chunk_bytes
    return max(1, -(-elements * width // size))


def check_sum(tensor: Tensor) -> None:
    """Refuse a type whose sum over ranks is not defined, or would not be what its user expects: bool, 8-bit floats, quantised ones.

    Raises:
        ConfigError: it is none of SUMMED.
    """
    if tensor.dtype not in SUMMED:
        allowed = ", ".join(_name(dtype) for dtype in SUMMED)
        raise ConfigError(Problem("tensor", "this type is not summed over ranks", got=_name(tensor.dtype), allowed=allowed))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
