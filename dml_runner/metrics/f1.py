"""``f1``: the harmonic mean of precision and recall, in the mean over classes (macro), so that rare ones weigh like frequent ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MacroF1(Metric):
    """2 x right / (predicted + there) of each class, in the mean over the classes that were predicted or there at all.

    Three counts a class and no table of class against class, so that a vocabulary is no burden.

    Args:
        classes: labels or token ids; whatever is predicted above them counts as one class more, which is never right.
    """

    full_state_update = False
    right: Tensor
    predicted: Tensor
    there: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._above = classes
        for name in ("right", "predicted", "there"):
            self.add_state(name, torch.zeros(classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        """Take in what was predicted, and what came; int64 (n,) each."""
        hits = targets[predicted == targets]
        for counts, ids in ((self.right, hits), (self.predicted, predicted), (self.there, targets)):
            counts += torch.bincount(ids.clamp(max=self._above), minlength=self._above + 1)

    def compute(self) -> Tensor:
        """0 to 1, fp64; 0 where nothing was predicted."""
        occurred = self.predicted + self.there
        scores = 2 * self.right.double() / occurred.clamp(min=1)
        return scores.sum() / (occurred > 0).sum().clamp(min=1)


def build(classes: int) -> Metric:
    """A new one over ``classes`` and whatever lies above."""
    return MacroF1(classes)
