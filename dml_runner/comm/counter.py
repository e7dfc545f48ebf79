"""Bytes that this rank sends, counted where they are sent."""

from __future__ import annotations

import threading


class Sent:
    """A running count of bytes sent since it was last taken; several threads may add to it."""

    def __init__(self) -> None:
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Note ``count`` bytes sent."""
        with self._lock:
            self._bytes += count

    def take(self) -> int:
        """The bytes sent since the last call."""
        with self._lock:
            taken, self._bytes = self._bytes, 0
        return taken


def all_reduce_bytes(buffer: int, ranks: int) -> int:
    """Bytes each rank sends in a ring all-reduce of ``buffer`` bytes: 2 (n - 1) / n of it (Patarasuk & Yuan 2009)."""
    return 2 * (ranks - 1) * buffer // ranks
