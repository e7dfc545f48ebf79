"""The engine of a helper: it sums its share of each bucket of gradients, and holds nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed
from dml_runner.comm import helped
from dml_runner.comm.links import Links
from dml_runner.engines.apart import Apart
from dml_runner.engines.base import StepReport, Weigh
from dml_runner.models.base import Batch


class Helping(Apart):
    """A rank that sums with the workers, and after the workers in ``links``.

    Args:
        links: workers and helpers.
        workers: how many of them.
        dtype: what gradients travel as.
        model: the job's: it tells what there is.
    """

    def __init__(self, links: Links, workers: int, dtype: torch.dtype, model: nn.Module) -> None:
        super().__init__(model)
        self._links, self._workers, self._dtype = links, workers, dtype
        self._buckets = helped.listen(links)

    def step(self, number: int, batches: Sequence[Batch], weight: Weigh, rate: float) -> StepReport:
        """Help with update ``number``; there are no batches."""
        weight()
        for elements in self._buckets:
            helped.serve(self._links, elements, self._dtype, self._workers)
        return StepReport(torch.zeros(()), lambda: 0.0, 0.0, 0.0, 0.0)

    def state(self) -> Iterator[Piece]:
        """Nothing."""
        return iter(())

    def restore(self, step: Committed) -> None:
        """Nothing is taken from a checkpoint."""

    def close(self) -> None:
        """Nothing to free."""
