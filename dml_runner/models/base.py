"""What every model family offers, and how its weights start."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class Model(nn.Module):
    """A module trained by the runner: it maps a batch to an output, and an output to a loss."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The output for a batch, whose first dimension is the sample."""

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of the loss over what is predicted, how much was predicted), both scalars."""

    @abstractmethod
    def example(self, samples: int) -> dict[str, Tensor]:
        """A batch of ``samples`` of the smallest legal shape, on torch's default device."""

    @abstractmethod
    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill one parameter in place with its starting values."""

    def head_parameters(self) -> int:
        """Elements that the head adds to the published count."""
        return 0


def initialise(model: Model, seed: int) -> None:
    """Give every parameter its starting values, whatever the layout: keyed by (seed, name), drawn on the CPU."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.empty(parameter.shape, dtype=parameter.dtype)
            model.initialise_parameter(name, values, keyed_generator(seed, name))
            parameter.copy_(values)


def keyed_generator(*key: Any) -> torch.Generator:
    """A CPU generator whose stream depends on ``key`` alone."""
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number & (2**63 - 1))
