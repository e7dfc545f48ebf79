"""Room for messages, kept from one bucket to the next: fresh memory can cost more than what is written into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 64
"""Pieces begin at multiples of this many bytes, so that a piece may be seen as any type."""


class Buffers:
    """One piece of memory that grows to the largest request and is handed out again and again."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def pieces(self, sizes: Sequence[int], device: torch.device) -> list[Tensor]:
        """Uninitialised tensors of ``sizes`` bytes (uint8), which the next call hands out again."""
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // ALIGNED) * ALIGNED)
        if self._memory.numel() < starts[-1] or self._memory.device != device:
            self._memory = torch.empty(starts[-1], dtype=torch.uint8, device=device)
        return [self._memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]
