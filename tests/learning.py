"""What tests of the families share: weights in which every part shows, and learning one batch by heart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dml_runner.models.base import Model


def enlarge(model: nn.Module) -> None:
    """Weights large enough that every part shows in the output, biases too; the same at every call."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)


def learn(model: Model, batch: Mapping[str, Tensor], steps: int, rate: float) -> tuple[list[float], float]:
    """AdamW on one batch, where every parameter gets a gradient at every step: the summed loss before each, and the batch's weight."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        total, weight = model.loss(model(batch), batch)
        (total / weight).backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    return losses, weight.item()
