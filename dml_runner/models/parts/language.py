"""What language models share: the loss over tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100
"""Target of a position that is not predicted (padding)."""


def token_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy in nats, and the number of predicted tokens.

    Args:
        logits: (batch, length, vocabulary), any float type; the sum is taken in fp32.
        targets: (batch, length); ``IGNORED`` where nothing is predicted.
    """
    total = cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (targets != IGNORED).sum()
