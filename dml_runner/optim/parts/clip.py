"""The norm of a gradient, and its bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def norm(gradients: list[Tensor]) -> float:
    """Euclidean norm over all gradients together."""
    norms = torch._foreach_norm(gradients)
    return math.hypot(*(torch.stack(norms).tolist() if norms[0].is_cuda else map(float, norms)))


def clip(gradients: list[Tensor], current: float, longest: float) -> None:
    """Scale gradients of norm ``current`` in place so that the norm is at most ``longest`` (Pascanu et al. 2013, algorithm 1)."""
    if current > longest:
        torch._foreach_mul_(gradients, longest / current)
