"""What classifiers share: their labels, where a text ends, and the loss and the guesses over samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.models.base import Guess


def label_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy in nats, and the number of samples.

    Args:
        logits: (batch, classes), any float type; the sum is taken in fp32, or fp64 where they are.
        targets: (batch,).
    """
    wide = logits if logits.element_size() > 4 else logits.float()
    return cross_entropy(wide, targets, reduction="sum"), (targets >= 0).sum()


def guess_labels(logits: Tensor, targets: Tensor) -> Guess:
    """The likeliest labels, and the true ones."""
    return Guess(logits.argmax(dim=-1), targets)


def last_real(x: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, length, width) -> (batch, width) of the last position of each sample where ``mask`` is true; padding stands behind it."""
    if mask is None:
        return x[:, -1]
    last = (mask.sum(dim=1) - 1).clamp(min=0)
    return x[torch.arange(len(x), device=x.device), last]


def classes_of(classes: int | None, data: DataFacts) -> int:
    """Labels of the model: its own number or, where that is open, the data's.

    Raises:
        ConfigError: the data has more labels than the model, or neither has any.
    """
    count = classes or data.classes
    if count == 0 or data.classes > count:
        raise ConfigError(
            Problem("model.classes", "smaller than the data's labels", got=str(classes), allowed=f"null, or at least {data.classes}")
            if data.classes
            else Problem("data", "has no labels, and the model is a classifier", hint="data=labelled_text, or another model.head")
        )
    return count
