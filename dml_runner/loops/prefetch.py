"""Prefetch: coming batches, made by threads while a step computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

AHEAD = 2
"""Steps ahead of the present one for each worker."""


class Prefetch(Generic[T]):
    """Steps' batches in their order; ``workers`` threads make those of coming steps.

    Threads and not processes: decoding, indexing and tensor work let go of the interpreter, they start at once, end with the
    process and can be broken off by a signal.

    Args:
        fetch: makes the batches of a step, from any thread.
        workers: threads; 0: each step's batches are made when they are asked for.
        last: number of the last step.
    """

    def __init__(self, fetch: Callable[[int], T], workers: int, last: int) -> None:
        self._fetch = fetch
        self._workers = workers
        self._last = last
        self._pool = ThreadPoolExecutor(workers, "data") if workers else None
        self._coming: deque[tuple[int, Future[T]]] = deque()

    def take(self, step: int) -> T:
        """The batches of ``step``, which follows the one taken before; what a worker failed with is raised here."""
        if self._pool is None:
            return self._fetch(step)
        following = self._coming[-1][0] + 1 if self._coming else step
        for coming in range(following, min(step + AHEAD * self._workers, self._last) + 1):
            self._coming.append((coming, self._pool.submit(self._fetch, coming)))
        number, future = self._coming[0]
        assert number == step, f"step {step} was asked for, and {number} is next"
        batches = future.result()
        self._coming.popleft()
        return batches

    def close(self) -> None:
        """Let the workers end; what they are making is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
