"""Replica: a copy of one process's tensors in the memory of another, made now and then while both go on.

Of each copy two generations stay, the last that is complete and the one on its way, so that a death at any moment leaves one whole.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from dml_runner.comm.pairs import Pair, Pending

ALIGNMENT = 8
"""Bytes to a multiple of which each tensor of a copy begins."""
LEAVING_S = 10.0
"""Seconds the other side's goodbye may take."""
_LOOK_S = 0.2


@dataclass(frozen=True)
class Copy:
    """Some tensors after a step.

    Attributes:
        step: number of that step.
        words: what they are; whoever wrote them can read them.
        flat: their bytes, see ``pack``.
    """

    step: int
    words: str
    flat: Tensor


def places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """The byte at which each tensor of a copy begins, and the bytes of all; tensors that share memory share a place."""
    seen: dict[tuple[int, int], int] = {}
    found, end = [], 0
    for tensor in tensors:
        key = (tensor.data_ptr(), tensor.nbytes)
        if key not in seen:
            seen[key] = end
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        found.append(seen[key])
    return found, end


def unpack(flat: Tensor, at: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The tensor that begins at byte ``at`` of a copy, as a view of it."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return flat[at : at + size].view(dtype).view(tuple(shape))


class Replica:
    """Copies of this process's tensors, here and on the way to the process after it; and those of the process before it.

    Args:
        after: the pair with the process that gets the copies.
        before: the pair with the process whose copies come here.

    Attributes:
        own: this process's last two copies, by step.
        other: the last two complete copies of the process before.
    """

    def __init__(self, after: Pair, before: Pair) -> None:
        self.own: dict[int, Copy] = {}
        self.other: dict[int, Copy] = {}
        self._after, self._before = after, before
        self._sending: list[tuple[Pending, Tensor]] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._receive, name="replica", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Return when the last copies have arrived, there and here.

        Raises:
            RuntimeError: one of the two others is gone.
        """
        for pending, _ in self._sending:
            pending.wait()
        self._sending = []
        with self._changed:
            while self.own and max(self.own) not in self.other:
                if self._ended:
                    raise RuntimeError("Connection closed by peer: the process whose copies come here has ended")
                self._changed.wait(_LOOK_S)

    def copy(self, step: int, tensors: Sequence[Tensor], words: str) -> None:
        """Copy contiguous tensors in host memory, and begin to send the copy; everybody's last ones are complete."""
        begins, size = places(tensors)
        flat = _room(self.own, size)
        for tensor, at in zip(tensors, begins, strict=True):
            unpack(flat, at, tensor.dtype, tensor.shape).copy_(tensor)
        self.own[step] = Copy(step, words, flat)
        text = _encode(words)
        for message in (torch.tensor([step, text.numel(), size]), text, flat):
            self._sending.append((self._after.send(message, 0), message))

    def close(self) -> None:
        """Say goodbye; raises nothing."""
        with suppress(RuntimeError):
            self.settle()
        with suppress(RuntimeError):
            self._after.send(torch.zeros(3, dtype=torch.int64), 0).wait()
        self._thread.join(LEAVING_S)

    def _receive(self) -> None:
        with suppress(RuntimeError):  # the process before is gone
            while (found := self._next()) is not None:
                with self._changed:
                    self.other[found.step] = found
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _next(self) -> Copy | None:
        """The next copy that comes; None: a goodbye."""
        head = torch.empty(3, dtype=torch.int64)
        self._before.receive(head, 0).wait()
        step, letters, size = head.tolist()
        if step == 0:
            return None
        text, flat = torch.empty(letters, dtype=torch.uint8), _room(self.other, size)
        self._before.receive(text, 0).wait()
        self._before.receive(flat, 0).wait()
        return Copy(step, bytes(text.numpy()).decode(), flat)


def _room(copies: dict[int, Copy], size: int) -> Tensor:
    """Where the next copy goes: in place of the one before the last, if there is one."""
    if len(copies) >= 2:
        flat = copies.pop(min(copies)).flat
        if flat.numel() == size:
            return flat
    return torch.empty(size, dtype=torch.uint8)


def _encode(words: str) -> Tensor:
    return torch.frombuffer(bytearray(words.encode()), dtype=torch.uint8)
