"""What is done with an optimizer once its gradients are there, and what it keeps of a parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def advance(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One step at the learning rate ``rate``, of which each group takes its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    optimizer.step()


def drop(parameters: Iterable[nn.Parameter]) -> None:
    """Let go of gradients."""
    for parameter in parameters:
        parameter.grad = None


def materialise(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Have the optimizer make its state of these parameters, all that it has, which changes no weight."""
    found = list(parameters)
    for parameter in found:
        parameter.grad = torch.zeros_like(parameter)
    advance(optimizer, 0.0)
    drop(found)


def state_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """The tensors that an optimizer keeps of a parameter, by name."""
    for key, value in sorted(optimizer.state.get(parameter, {}).items()):
        if isinstance(value, Tensor):
            yield key, value
