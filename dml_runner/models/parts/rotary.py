"""Rotary positions: a token's place as a rotation of its queries and keys (Su et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


class Rotary:
    """Turns pairs of channels, ``x[i]`` with ``x[i + width / 2]``, by the token's position times a frequency of the pair.

    The product of a query and a key then depends on how far apart they stand alone. It holds no parameter: the angles are worked out
    in fp32 at the first use on a device, so there is nothing for ``to_empty`` to lose and nothing in a checkpoint. The layers of a
    model share one.
    """

    def __init__(self, width: int, context: int, theta: float) -> None:
        self.width = width
        self.context = context
        self.theta = theta
        self._known: Tensor | None = None

    def __call__(self, x: Tensor, start: int = 0) -> Tensor:
        """(batch, length, heads, width), whose first token stands at position ``start`` -> the same, turned."""
        cos, sin = self._waves(start, x.shape[1], x.device)
        return torch.addcmul(x * cos, x.roll(self.width // 2, dims=-1), sin).type_as(x)

    def _waves(self, start: int, length: int, device: torch.device) -> Tensor:
        """Cosine and sine of every channel's angle, (2, length, 1, width); the sine is negative where a pair's first channel stands."""
        if torch.compiler.is_compiling():  # fused into what uses them; a kept tensor would make the second step compile again
            return self._compute(start, length, device)
        if self._known is None or self._known.device != device:
            with torch.inference_mode(False):
                self._known = self._compute(0, self.context, device)
        return self._known[:, start : start + length]

    def _compute(self, start: int, length: int, device: torch.device) -> Tensor:
        frequencies = 1.0 / self.theta ** (torch.arange(0, self.width, 2, dtype=torch.float32, device=device) / self.width)
        places = torch.arange(start, start + length, dtype=torch.float32, device=device)
        angles = (places[:, None] * frequencies)[:, None]
        cos, sin = angles.cos(), angles.sin()
        return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))
