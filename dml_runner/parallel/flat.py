"""Flat: a module's trained weights as views of one row, and their gradients as views of another; parameters in batches that travel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class FlatWeights:
    """Moves ``parameters`` into one row, one behind the other; the module that owns them goes on as before.

    Attributes:
        weights: the row, on the parameters' device.
        gradients: the row of their gradients, zero at first.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        size = sum(p.numel() for p in parameters)
        device = parameters[0].device
        self.weights = torch.empty(size, device=device)
        self.gradients = torch.zeros(size, device=device)
        at = 0
        for parameter in parameters:
            span = slice(at, at + parameter.numel())
            self.weights[span] = parameter.detach().flatten()
            parameter.data = self.weights[span].view(parameter.shape)
            parameter.grad = self.gradients[span].view(parameter.shape)
            at = span.stop

    def host(self, row: Tensor) -> Tensor:
        """A row in host memory that a transfer may read or fill: ``row`` itself where it is there already."""
        return row if row.device.type == "cpu" else torch.zeros_like(row, device="cpu").pin_memory()


def batches(parameters: list[nn.Parameter], elements: int) -> Iterator[list[nn.Parameter]]:
    """Parameters in their order, ``elements`` at a time or a little more."""
    batch: list[nn.Parameter] = []
    for parameter in parameters:
        batch.append(parameter)
        if sum(p.numel() for p in batch) >= elements:
            yield batch
            batch = []
    if batch:
        yield batch
