"""Post: the messages of a pipeline rank. Activations travel to the next stage, their gradients back.

What comes next is known from the schedule, so receives are posted before the message is needed, in the order in which it is sent; a send
never holds up its sender. All messages from one rank to another travel in one order over one link, whatever they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dml_runner.comm.links import Exchange, Links
from dml_runner.schedules.base import Action, Schedule

AHEAD = 2
"""Messages of one sender whose receive is posted before the one that is waited for has come and gone."""
DIMENSIONS = 8
"""The most a boundary tensor may have."""
PASSING = 4
"""Activations without a backward that may be on their way to a rank before its sender waits for it."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types that boundary tensors may have; a header names one by its place here."""

Signature = tuple[Any, ...]
"""What two ranks know of a micro-batch before a message about it: equal where the forms of its boundary tensors are."""


@dataclass(frozen=True, slots=True)
class Letter:
    """The input of an action: the activation that stage ``stage`` takes, or (``back``) the gradient of what it put out."""

    back: bool
    stage: int
    micro: int


@dataclass(frozen=True)
class Form:
    """What a boundary tensor looks like.

    Attributes:
        shape: of the activation and its gradient.
        dtype: of both.
        trained: whether a gradient comes back.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool


@dataclass
class _Sender:
    """A rank from which messages come.

    Attributes:
        peer: its number.
        links: over which they come.
        order: its messages of a step.
        frees: the letters that it must have received before it sent this one.
        posted: how many of ``order`` are received or being received.
        coming: receives that nobody has waited for.
        received: letters to it that are certainly received.
    """

    peer: int
    links: Links
    order: tuple[Letter, ...]
    frees: dict[Letter, list[Letter]]
    posted: int = 0
    coming: dict[Letter, tuple[Exchange, Tensor] | None] = field(default_factory=dict)
    received: list[Letter] = field(default_factory=list)


class Post:
    """What a pipeline rank sends and receives in a step.

    Args:
        schedule: of all ranks.
        rank: this one's number.
        rising: to ranks of higher numbers and from lower ones. On NCCL its group must not be that of ``falling``.
        falling: the other way.
        control: for headers, on the CPU; under a tag of its own, or of a group of its own.
        device: where received tensors stand.
    """

    def __init__(self, schedule: Schedule, rank: int, rising: Links, falling: Links, control: Links, device: torch.device) -> None:
        self._schedule, self._rank, self._device = schedule, rank, device
        self._rising, self._falling, self._control = rising, falling, control
        self._signatures: Sequence[Signature] = ()
        self._forms: dict[tuple[int, Signature], Form] = {}
        self._sending: dict[Letter, Exchange] = {}
        self._headers: list[Exchange] = []
        self._within: dict[Letter, Tensor] = {}
        self._passing: deque[Exchange] = deque()
        self._senders: dict[int, _Sender] = {}
        self._places: dict[Letter, tuple[int, int]] = {}
        for peer, actions in schedule.arrivals(rank).items():
            order = tuple(_letter(action) for action in actions)
            self._senders[peer] = _Sender(peer, self._links(peer, rank), order, _frees(schedule, rank, peer))
            self._places |= {letter: (peer, place) for place, letter in enumerate(order)}

    def begin(self, signatures: Sequence[Signature]) -> None:
        """A step with micro-batches of these signatures begins."""
        self._signatures = signatures
        for sender in self._senders.values():
            sender.posted = 0
            self._receive_ahead(sender, AHEAD)

    def take(self, letter: Letter) -> Tensor | None:
        """What ``letter`` brings, waiting for it: an activation wants a gradient where one is sent back; None: no gradient is sent.

        Raises:
            PeerLost: its sender is gone.
        """
        if letter not in self._places:
            return self._within.pop(letter, None)
        peer, place = self._places[letter]
        sender = self._senders[peer]
        while sender.posted <= place:
            self._receive(sender, self._form_of(sender.order[sender.posted], peer))
        coming = sender.coming.pop(letter)
        sender.received += sender.frees.get(letter, ())
        tensor = None
        if coming is not None:
            exchange, tensor = coming
            exchange.wait()
            for each in sender.received:
                if each in self._sending:
                    self._sending.pop(each).wait()
            sender.received.clear()
        self._receive_ahead(sender, place + 1 + AHEAD)
        return tensor

    def send(self, letter: Letter, tensor: Tensor, trained: bool = True) -> None:
        """Send ``tensor`` to whom ``letter`` is for; an activation comes back as a gradient where it is ``trained``.

        Raises:
            PeerLost: the receiver is known to be gone.
        """
        tensor = tensor.detach()
        peer = self._schedule.rank_of(letter.stage)
        if peer == self._rank:
            self._within[letter] = tensor if letter.back else tensor.requires_grad_(trained)
            return
        if not letter.back:
            self._describe(letter.stage, self._signatures[letter.micro], Form(tuple(tensor.shape), tensor.dtype, trained), peer)
        self._sending[letter] = self._links(self._rank, peer).send(tensor.contiguous(), peer)

    def end(self) -> None:
        """Return when all that was sent is received.

        Raises:
            PeerLost: a receiver is gone.
        """
        for exchange in (*self._sending.values(), *self._headers, *self._passing):
            exchange.wait()
        for done in (self._sending, self._headers, self._passing):
            done.clear()

    # --- without a backward -------------------------------------------------------------------------------------------------

    def pass_by(self, signature: Signature) -> None:
        """A micro-batch of this signature passes all stages once."""
        self._signatures = (signature,)

    def take_now(self, stage: int) -> Tensor:
        """The activation that ``stage`` takes. Raises as ``take``."""
        letter, peer = Letter(False, stage, 0), self._schedule.rank_of(stage - 1)
        if peer == self._rank:
            return self._within.pop(letter)
        form = self._form_of(letter, peer)
        tensor = torch.empty(form.shape, dtype=form.dtype, device=self._device)
        self._links(peer, self._rank).receive(tensor, peer).wait()
        return tensor

    def send_now(self, stage: int, tensor: Tensor) -> None:
        """Send the activation that ``stage`` takes. Raises as ``send``, or where an earlier one has not come to a rank that is gone."""
        letter = Letter(False, stage, 0)
        self.send(letter, tensor, trained=False)
        if letter in self._sending:
            self._passing.append(self._sending.pop(letter))
        while len(self._passing) > PASSING:
            self._passing.popleft().wait()

    def _links(self, sender: int, receiver: int) -> Links:
        return self._rising if sender < receiver else self._falling

    # --- receiving --------------------------------------------------------------------------------------------------------

    def _receive_ahead(self, sender: _Sender, until: int) -> None:
        """Post receives of what has a known form up to message ``until``."""
        while sender.posted < min(until, len(sender.order)):
            form = self._form(sender.order[sender.posted])
            if form is None:
                return
            self._receive(sender, form)

    def _receive(self, sender: _Sender, form: Form) -> None:
        letter = sender.order[sender.posted]
        sender.posted += 1
        if letter.back and not form.trained:
            sender.coming[letter] = None
            return
        tensor = torch.empty(form.shape, dtype=form.dtype, device=self._device, requires_grad=form.trained and not letter.back)
        sender.coming[letter] = sender.links.receive(tensor.detach(), sender.peer), tensor

    # --- what tensors look like -------------------------------------------------------------------------------------------

    def _form(self, letter: Letter) -> Form | None:
        """Of a message; None: nobody has told yet."""
        return self._forms.get((letter.stage + letter.back, self._signatures[letter.micro]))

    def _form_of(self, letter: Letter, peer: int) -> Form:
        """Of the next message of ``peer``, whose header is waited for where it is the first of its kind."""
        form = self._form(letter)
        if form is None:
            assert not letter.back, "a gradient looks like the activation that was sent"
            header = torch.empty(3 + DIMENSIONS, dtype=torch.int64)
            self._control.receive(header, peer).wait()
            dtype, trained, dimensions, *shape = header.tolist()
            form = Form(tuple(shape[:dimensions]), DTYPES[dtype], bool(trained))
            self._forms[letter.stage, self._signatures[letter.micro]] = form
        return form

    def _describe(self, stage: int, signature: Signature, form: Form, peer: int) -> None:
        """Tell ``peer`` what comes to ``stage`` of micro-batches like this one, unless it knows."""
        known = self._forms.setdefault((stage, signature), form)
        assert known == form, f"what stage {stage} takes was {known} and is {form} of micro-batches that are alike"
        if known is form:
            header = [DTYPES.index(form.dtype), int(form.trained), len(form.shape), *form.shape]
            header += [0] * (3 + DIMENSIONS - len(header))
            self._headers.append(self._control.send(torch.tensor(header), peer))


def _letter(action: Action) -> Letter:
    """The message that is an action's input."""
    return Letter(action.kind != "F", action.stage, action.micro)


def _frees(schedule: Schedule, rank: int, peer: int) -> dict[Letter, list[Letter]]:
    """For each message from ``peer`` to ``rank``: those the other way that it has received between its message before and this one."""
    found: dict[Letter, list[Letter]] = {}
    taken: list[Letter] = []
    for action in schedule.ranks[peer]:
        if any(schedule.rank_of(need.stage) == rank for need in _sources(schedule, action)):
            taken.append(_letter(action))
        reader = schedule.reader(action)
        if reader is not None and schedule.rank_of(reader.stage) == rank:
            found[_letter(reader)], taken = taken, []
    return found


def _sources(schedule: Schedule, action: Action) -> Iterator[Action]:
    """The actions of other stages whose results ``action`` takes."""
    return (need for need in schedule.needs(action) if need.stage != action.stage)
