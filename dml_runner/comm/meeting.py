"""Meeting: small words between ranks of which some may die meanwhile, through the store they met in.

A collective of the backend fails on every rank when one is gone. Here a rank that is known to be dead is passed over: whoever
started the ranks writes that down in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

LOOK = timedelta(seconds=0.2)
"""How long a word is waited for before the store is asked whether its rank died."""


def dead_key(rank: int) -> str:
    """Where the store holds that ``rank`` died."""
    return f"dead/{rank}"


class Meeting:
    """The ranks of ``store``, as rank ``rank`` of ``size`` sees them.

    Attributes:
        living: those that took part in the last ``gather``, in order; all ranks see the same.
        look: called now and then while words are waited for; what it raises ends the wait.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.living = tuple(range(size))
        self.look: Callable[[], None] = lambda: None
        self._store, self._rank = store, rank
        self._round = 0

    def gather(self, mine: Tensor) -> list[Tensor]:
        """The tensor of every living rank, in order; they are of one type, and may differ in shape."""
        self._round += 1
        shape = torch.tensor(mine.shape, dtype=torch.int64)
        values = mine.detach().cpu().contiguous().flatten().view(torch.uint8)
        word = bytes([mine.dim()]) + shape.numpy().tobytes() + values.numpy().tobytes()
        self._store.set(self._key(self._round, self._rank), word)  # type: ignore[arg-type]  # bytes are as good as text
        found = [(rank, self._word(rank)) for rank in self.living]
        self.living = tuple(rank for rank, word in found if word is not None)
        self._store.delete_key(self._key(self._round - 2, self._rank))
        return [_tensor(word, mine.dtype) for _, word in found if word is not None]

    def _word(self, rank: int) -> bytes | None:
        key = self._key(self._round, rank)
        while True:
            dead = self._store.check([dead_key(rank)])
            if self._store.check([key]):
                return self._store.get(key)
            if dead:
                return None
            try:
                self._store.wait([key], LOOK)
            except (RuntimeError, dist.DistStoreError):
                self.look()

    @staticmethod
    def _key(number: int, rank: int) -> str:
        return f"meeting/{number}/{rank}"


def _tensor(word: bytes, dtype: torch.dtype) -> Tensor:
    after = 1 + 8 * word[0]
    shape = torch.frombuffer(bytearray(word[1:after]), dtype=torch.int64).tolist() if word[0] else []
    values = torch.frombuffer(bytearray(word[after:]), dtype=dtype) if len(word) > after else torch.empty(0, dtype=dtype)
    return values.view(shape)
