"""The face of prepared data: which samples form a step, and their batches."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from dml_runner.data.parts.order import Order
from dml_runner.facts import DataFacts
from dml_runner.models.parts.language import IGNORED


class Data(Protocol):
    """Prepared data. Batches are as ``models.base.Batch`` says."""

    @property
    def facts(self) -> DataFacts:
        """What was measured when it was prepared."""

    def order(self, seed: int) -> Order:
        """Which samples form step k."""

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """The training samples ``picks``, int64 (n, 2): a sample's number and its epoch; may be called from several threads.

        Raises:
            IndexError: a sample's number is not below ``train_samples``.
        """

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The held-out samples ``indices``, int64 (n,)."""


@runtime_checkable
class Written(Protocol):
    """Data made of tokens that can be read as text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``.

        Raises:
            ConfigError: something in it has no token; the first such is named.
        """

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; what is no text, or no token at all, shows as the replacement character."""


def weight_of(batch: dict[str, Tensor]) -> int:
    """How much there is to predict in a batch."""
    return int((batch["targets"] != IGNORED).sum())
