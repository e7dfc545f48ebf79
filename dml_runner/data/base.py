"""Prepared tokens as batches of tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from dml_runner.data.parts.store import load_store
from dml_runner.data.parts.tokenizer import tokenizer_from
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.models.parts.language import IGNORED


class TokenData:
    """Samples of ``seq_len`` tokens; sample i starts at token i x seq_len and its targets are the tokens that follow.

    Raises:
        ConfigError: the prepared data is gone.
    """

    def __init__(self, facts: DataFacts) -> None:
        store = load_store(Path(facts.store))
        if store is None:
            raise ConfigError(Problem("data", "the prepared tokens are missing or damaged", got=facts.store, hint="prepare the data again"))
        self.facts = facts
        self.vocabulary = facts.vocabulary
        self._tokenizer = tokenizer_from(store.vocabulary)
        self._windows = sliding_window_view(store.tokens("train"), facts.seq_len + 1)[:: facts.seq_len]
        self._held_out = store.tokens("eval")
        self._offsets = np.arange(facts.seq_len + 1)

    def train_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """``inputs`` and ``targets``, int64 (len(indices), seq_len), of the training samples ``indices``.

        Raises:
            IndexError: an index is not below ``train_samples``.
        """
        return _batch(self._windows[indices])

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out samples; targets behind the end of the held-out tokens are -100."""
        positions = indices[:, None] * self.facts.seq_len + self._offsets
        last = len(self._held_out) - 1
        batch = _batch(self._held_out[np.minimum(positions, last)])
        batch["targets"][torch.from_numpy(positions[:, 1:] > last)] = IGNORED
        return batch

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``.

        Raises:
            ConfigError: a character has no token; the first such is named.
        """
        return self._tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; what is not UTF-8, or no token at all, shows as the replacement character."""
        return self._tokenizer.decode(ids)


def _batch(rows: np.ndarray) -> dict[str, Tensor]:
    inputs, targets = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
    return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
