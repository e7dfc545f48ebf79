"""Running text as batches in which every token predicts the next."""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from dml_runner.data.parts.order import Order, SampleOrder, StreamOrder
from dml_runner.data.parts.store import open_store
from dml_runner.facts import DataFacts
from dml_runner.models.parts.language import IGNORED


class TokenData:
    """Samples of ``seq_len`` tokens; sample i starts at token i x seq_len and its targets are the tokens that follow.

    Args:
        facts: of the prepared text.
        streams: whether each place of a batch reads on where it ended a step before.

    Raises:
        ConfigError: the prepared data is gone or damaged.
    """

    def __init__(self, facts: DataFacts, streams: bool = False) -> None:
        store = open_store(facts.store)
        self.facts = facts
        self._streams = streams
        self._store = store
        self._windows = sliding_window_view(store.tokens("train"), facts.seq_len + 1)[:: facts.seq_len]
        self._held_out = store.tokens("eval")

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled, or those that the streams have come to."""
        return StreamOrder(self.facts.train_samples) if self._streams else SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """``inputs`` and ``targets``, int64 (n, seq_len); of streams also ``first``, true where the text begins anew."""
        batch = _batch(self._store.checked(self._windows[picks[:, 0]]))
        if self._streams:
            batch["first"] = torch.from_numpy(picks[:, 0] == 0)
        return batch

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out samples; targets behind the end of the held-out tokens are -100.

        A sample of streams begins one sample early, where nothing is predicted: so it is read with what came before it in mind,
        whoever reads it.
        """
        length, before = self.facts.seq_len, self.facts.seq_len if self._streams else 0
        positions = indices[:, None] * length + np.arange(-before, length + 1)
        last = len(self._held_out) - 1
        batch = _batch(self._store.checked(self._held_out[positions.clip(0, last)]))
        predicted = (positions[:, 1:] <= last) & (np.arange(length + before) >= before)
        batch["targets"][torch.from_numpy(~predicted)] = IGNORED
        return batch

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``.

        Raises:
            ConfigError: a character has no token; the first such is named.
        """
        return self._store.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; what is not UTF-8, or no token at all, shows as the replacement character."""
        return self._store.tokenizer.decode(ids)


def _batch(rows: np.ndarray) -> dict[str, Tensor]:
    inputs, targets = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
    return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
