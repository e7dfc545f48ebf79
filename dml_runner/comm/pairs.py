"""Pairs: two ranks, or two parts of one process, that pass tensors to each other and to nobody else.

A pair over the network is a group of its own, so that the death of one rank is felt by those who talk to it, at once, and by
nobody else.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from dml_runner.comm.counter import Sent


class Pending(Protocol):
    """A transfer that was begun."""

    def wait(self) -> object:
        """Return when the tensor may be used again.

        Raises:
            RuntimeError: the other side is gone.
        """


class Pair(Protocol):
    """One side of a pair. Tensors are contiguous and in host memory; both sides give a transfer the same tag."""

    def send(self, tensor: Tensor, tag: int) -> Pending:
        """Begin to pass ``tensor`` on, which stays as it is until then."""

    def receive(self, tensor: Tensor, tag: int) -> Pending:
        """Begin to fill ``tensor`` with what the other side sends."""


class Remote:
    """A pair over the network: two gloo groups of two, each for one direction.

    gloo holds one lock of a connection while it reads and while it writes: over one connection alone, what goes would wait for what
    comes, and the word that a receive is ready for what was sent before it.
    """

    def __init__(self, store: dist.Store, name: str, mine: int, other: int, sent: Sent, timeout: timedelta) -> None:
        """Meet rank ``other`` under ``name`` in ``store``; ``timeout`` bounds every wait from here on."""
        low, high = sorted((mine, other))
        self._side = int(mine > other)
        ways = [dist.PrefixStore(f"{name}/{low}-{high}/{sender}", store) for sender in range(2)]
        self._groups: list[Any] = [dist.ProcessGroupGloo(way, self._side, 2, timeout) for way in ways]
        self._sent = sent

    def send(self, tensor: Tensor, tag: int) -> Pending:
        """See ``Pair``."""
        self._sent.add(tensor.nbytes)
        pending: Pending = self._groups[self._side].send([tensor], 1 - self._side, tag)
        return pending

    def receive(self, tensor: Tensor, tag: int) -> Pending:
        """See ``Pair``."""
        pending: Pending = self._groups[1 - self._side].recv([tensor], 1 - self._side, tag)
        return pending


@dataclass
class _Mailbox:
    """What one side of a pair within a process has sent and the other has not taken."""

    waiting: dict[int, deque[Tensor]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False


@dataclass(frozen=True)
class _Put:
    box: _Mailbox

    def wait(self) -> None:
        """Nothing to wait for: the letter is a copy."""


@dataclass(frozen=True)
class _Take:
    box: _Mailbox
    tensor: Tensor
    tag: int

    def wait(self) -> None:
        with self.box.changed:
            self.box.changed.wait_for(lambda: self.box.closed or self.box.waiting.get(self.tag))
            if not self.box.waiting.get(self.tag):
                raise RuntimeError("Connection closed by peer: the other part of this process has ended")
            self.tensor.copy_(self.box.waiting[self.tag].popleft())


class Within:
    """One side of a pair whose two sides are threads of one process; nothing goes over a network."""

    def __init__(self, outgoing: _Mailbox, incoming: _Mailbox) -> None:
        self._outgoing, self._incoming = outgoing, incoming

    def send(self, tensor: Tensor, tag: int) -> Pending:
        """See ``Pair``."""
        with self._outgoing.changed:
            self._outgoing.waiting.setdefault(tag, deque()).append(tensor.clone())
            self._outgoing.changed.notify_all()
        return _Put(self._outgoing)

    def receive(self, tensor: Tensor, tag: int) -> Pending:
        """See ``Pair``."""
        return _Take(self._incoming, tensor, tag)

    def close(self) -> None:
        """Have the other side's waits fail: nothing more will come."""
        with self._outgoing.changed:
            self._outgoing.closed = True
            self._outgoing.changed.notify_all()


def within() -> tuple[Within, Within]:
    """Both sides of a pair within this process."""
    one, other = _Mailbox(), _Mailbox()
    return Within(one, other), Within(other, one)
