"""What engines share of ranks that take part in updates alone, with no model to run."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from dml_runner.checkpoint.read import Committed
from dml_runner.models.base import Batch


class Apart:
    """A rank that holds no replica."""

    def __init__(self, model: nn.Module) -> None:
        """``model`` is the job's: it tells what there is."""
        self._names = [name for name, _ in model.named_parameters()]

    def fingerprint(self) -> tuple[list[str], Tensor]:
        """As many zeros as workers have sums."""
        return self._names, torch.zeros(len(self._names), dtype=torch.int64)

    def evaluate(self, batch: Batch) -> NoReturn:
        """Never asked: this rank has no share of the held-out set."""
        raise AssertionError("this rank evaluates nothing")

    def forward(self, batch: Batch, cache: object = None) -> NoReturn:
        """Never asked."""
        raise AssertionError("this rank runs no model")

    def times(self) -> tuple[Tensor, float]:
        """See ``Engine.times``: there is no schedule."""
        return torch.empty(0, 2, dtype=torch.float64), 0.0

    def load_weights(self, step: Committed) -> NoReturn:
        """Never asked: only workers take part in an evaluation."""
        raise AssertionError("this rank takes no part in an evaluation")
