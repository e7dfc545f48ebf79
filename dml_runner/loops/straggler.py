"""A rank that computes slower than the others, named once it has been so for a while."""

from __future__ import annotations

import torch

SLOWER = 1.5
"""Computing time over the median rank's that counts as slow."""
ROWS = 2
"""Rows of metrics in a row (each a mean over its steps) before a slow rank is named."""


class Stragglers:
    """Watches each rank's own computing time, row by row."""

    def __init__(self) -> None:
        self._slow_rows: dict[int, int] = {}

    def see(self, computing_s: torch.Tensor) -> str | None:
        """Take in every rank's mean seconds of computing a step; a sentence when a rank is first known to be slow."""
        if len(computing_s) < 2:
            return None
        fast = float(computing_s.sort().values[(len(computing_s) - 1) // 2])
        for rank, seconds in enumerate(computing_s.tolist()):
            slow = seconds > SLOWER * fast
            self._slow_rows[rank] = self._slow_rows.get(rank, 0) + 1 if slow else 0
            if self._slow_rows[rank] == ROWS:
                return f"rank {rank} is slow: it computes {seconds * 1e3:.1f} ms a step where the median rank takes {fast * 1e3:.1f} ms"
        return None
