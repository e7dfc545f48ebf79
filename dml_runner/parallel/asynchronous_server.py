"""A server whose workers do not wait for each other: each push is an update of its own (Dean et al. 2012; Ho et al. 2013)."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from dml_runner.comm.pairs import Pair, Pending
from dml_runner.comm.wires.codecs import Codec
from dml_runner.optim.parts.clip import squares
from dml_runner.parallel.desk import Desk
from dml_runner.parallel.server import Part, Share, arrival_of

ASK, ANSWER, HEAD = 1, 2, 3
"""Tags of what is no bucket, counted from the number of buckets: a worker asks for a ticket, is answered, announces a push."""
GOODBYE, LOOK = -1, -2
"""What a worker asks for in place of a ticket: to leave, or to see the weights and push nothing."""
LEAVING_S = 10.0
"""Seconds a worker's goodbye may take."""


class Tickets:
    """A worker's side of the desk.

    Args:
        desk: the pair with the server that has it.
        servers: the pairs with all servers.
        buckets: of the row.
    """

    def __init__(self, desk: Pair, servers: Sequence[Pair], buckets: int) -> None:
        self._desk, self._servers, self._buckets = desk, servers, buckets

    def take(self, until: int, closing: bool) -> tuple[int, int, bool]:
        """See ``Desk.take``."""
        self._desk.send(torch.tensor([until, int(closing)]), self._buckets + ASK).wait()
        word = torch.empty(3, dtype=torch.int64)
        self._desk.receive(word, self._buckets + ANSWER).wait()
        ticket, last, behind = word.tolist()
        return ticket, last, bool(behind)

    def announce(self, rate: float) -> None:
        """Tell every server that a push comes, and its learning rate."""
        for pair in self._servers:
            pair.send(torch.tensor(rate, dtype=torch.float64), self._buckets + HEAD).wait()

    def look(self) -> None:
        """Ask every server for its weights, without a push."""
        self._desk.send(torch.tensor([LOOK, 0]), self._buckets + ASK).wait()
        self.announce(math.inf)

    def look_again(self) -> None:
        """The same with a ticket in hand, whose push is still to come."""
        self.announce(math.inf)
        self._desk.send(torch.tensor([LOOK, 0]), self._buckets + ASK).wait()

    def leave(self) -> None:
        """Say goodbye to all servers."""
        self._desk.send(torch.tensor([GOODBYE, 0]), self._buckets + ASK).wait()
        for pair in self._servers:
            if pair is not self._desk:
                pair.send(torch.tensor(math.nan, dtype=torch.float64), self._buckets + HEAD).wait()


class AsynchronousServer:
    """Serves each worker in a thread of its own, from now until the workers are gone.

    A worker's death ends its thread and nothing else. A part is locked while one push updates it.

    Args:
        share: what this server holds.
        pairs: one for each worker.
        codec: reads what gradients travelled as; None: as they are.
        desk: where workers ask for tickets; None: another server has it.
    """

    def __init__(self, share: Share, pairs: Sequence[Pair], codec: Codec | None, desk: Desk | None) -> None:
        self.share = share
        self._codec, self._desk = codec, desk
        self._locks = [threading.Lock() for _ in share.parts]
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._serve, args=(worker, pair), name=f"serve {worker}", daemon=True)
            for worker, pair in enumerate(pairs)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def clock_gap(self) -> int:
        """See ``Desk.widest_gap``; 0: another server has the desk."""
        return 0 if self._desk is None else self._desk.widest_gap

    def begin_after(self, step: int) -> None:
        """See ``Desk.begin_after``."""
        if self._desk is not None:
            self._desk.begin_after(step)

    def close(self) -> None:
        """Return when every living worker has said goodbye."""
        for thread in self._threads:
            thread.join(LEAVING_S)

    def check(self) -> None:
        """Raise what a thread failed of.

        A gradient that is not finite is no failure: it changes nothing, and its worker learns of it by its norm.
        """
        if self._failure is not None:
            raise self._failure

    def _serve(self, worker: int, pair: Pair) -> None:
        visit = _Visit(self.share, pair, self._codec)
        try:
            while self._desk is None or self._give_ticket(worker, pair, self._desk):
                rate = torch.empty((), dtype=torch.float64)
                pair.receive(rate, self.share.buckets + HEAD).wait()
                if math.isnan(rate):
                    return
                if math.isinf(rate):
                    visit.show(self._locks)
                else:
                    visit.take_push(float(rate), self._locks)
        except RuntimeError:  # the worker is gone, or all is over
            if self._desk is not None:
                self._desk.leave(worker)
        except BaseException as failure:
            self._failure = failure

    def _give_ticket(self, worker: int, pair: Pair, desk: Desk) -> bool:
        """Answer until there is a ticket or the worker wants to look; False: it says goodbye."""
        ticket = 0
        while not ticket:
            word = torch.empty(2, dtype=torch.int64)
            pair.receive(word, self.share.buckets + ASK).wait()
            until, closing = word.tolist()
            if until in (GOODBYE, LOOK):
                return bool(until == LOOK)
            ticket, last, behind = desk.take(worker, until, bool(closing))
            pair.send(torch.tensor([ticket, last, int(behind)]), self.share.buckets + ANSWER).wait()
        return True


class _Visit:
    """One worker's pushes, one after the other."""

    def __init__(self, share: Share, pair: Pair, codec: Codec | None) -> None:
        self._share, self._pair, self._codec = share, pair, codec
        self._arrivals = [arrival_of(part.weights.numel(), codec) for part in share.parts]
        self._answers = [torch.empty_like(part.weights) for part in share.parts]
        self._sending: list[Pending] = []

    def take_push(self, rate: float, locks: Sequence[threading.Lock]) -> None:
        receiving = [self._pair.receive(arrival, part.bucket) for part, arrival in zip(self._share.parts, self._arrivals, strict=True)]
        self._let_go()
        total = 0.0
        for number, (part, pending) in enumerate(zip(self._share.parts, receiving, strict=True)):
            pending.wait()
            with locks[number]:
                total += self._update(part, self._arrivals[number], rate)
                self._answers[number].copy_(part.weights)
            self._sending.append(self._pair.send(self._answers[number], part.bucket))
        self._sending.append(self._pair.send(torch.tensor(total, dtype=torch.float64), self._share.buckets))

    def show(self, locks: Sequence[threading.Lock]) -> None:
        """Send the weights as they are."""
        self._let_go()
        for part, lock, answer in zip(self._share.parts, locks, self._answers, strict=True):
            with lock:
                answer.copy_(part.weights)
            self._sending.append(self._pair.send(answer, part.bucket))

    def _let_go(self) -> None:
        """Wait until the answers are on their way, and may be written anew."""
        for pending in self._sending:
            pending.wait()
        self._sending = []

    def _update(self, part: Part, arrival: Tensor, rate: float) -> float:
        """Squared norm of the gradient; where that is not finite, the part stays as it is."""
        part.gradient.copy_(arrival if self._codec is None else self._codec.decode(arrival, part.gradient.numel()))
        total = squares(part.gradient)
        if math.isfinite(total):
            part.update(rate)
        return total
