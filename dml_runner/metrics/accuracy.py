"""``accuracy``: the share of labels, or of predicted tokens, that the model got right."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Accuracy(Metric):
    """Right ones over all (micro average): two counts, whatever the number of classes."""

    full_state_update = False
    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        """Take in what was predicted, and what came; int64 (n,) each."""
        self.right += (predicted == targets).sum()
        self.total += targets.numel()

    def compute(self) -> Tensor:
        """0 to 1, fp64; 0 where nothing was predicted."""
        return self.right.double() / self.total.clamp(min=1)


def build(classes: int) -> Metric:
    """A new one; it needs to know no classes."""
    return Accuracy()
