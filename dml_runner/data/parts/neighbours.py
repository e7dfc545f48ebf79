"""Running text as characters of words, each with the word behind and the word before it to predict."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dml_runner.data.parts.order import Order, SampleOrder, check_samples
from dml_runner.data.parts.plain_tokenizers import WordTokenizer
from dml_runner.data.parts.store import open_store
from dml_runner.data.parts.words import character_table
from dml_runner.facts import DataFacts
from dml_runner.models.parts.characters import PADDING
from dml_runner.models.parts.language import IGNORED


class NeighbourData:
    """Samples of ``seq_len`` words; sample i starts at word i x seq_len.

    Args:
        facts: of the prepared text.
        word_length: characters of a word that are seen.

    Raises:
        ConfigError: the prepared data is gone or damaged.
    """

    def __init__(self, facts: DataFacts, word_length: int) -> None:
        store = open_store(facts.store)
        tokenizer = store.tokenizer
        assert isinstance(tokenizer, WordTokenizer), "preparing refuses others"
        self.facts = facts
        self._store = store
        self._characters = character_table(["", *tokenizer.words], word_length)
        self._train, self._held_out = store.tokens("train"), store.tokens("eval")

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled."""
        return SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """``characters`` (n, seq_len, word_length), ``targets`` and ``before`` (n, seq_len), int64; the first word has none before."""
        check_samples(picks[:, 0], self.facts.train_samples)
        batch = self._batch(self._train, picks[:, 0])
        del batch["mask"]
        return batch

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out samples, and ``mask``, false behind the end of the text, where nothing is predicted."""
        return self._batch(self._held_out, indices)

    def encode(self, text: str) -> list[int]:
        """Ids of the words of ``text``."""
        return self._store.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The words of ``ids``."""
        return self._store.tokenizer.decode(ids)

    def _batch(self, words: np.ndarray, samples: np.ndarray) -> dict[str, Tensor]:
        length, last = self.facts.seq_len, len(words) - 1
        positions = samples[:, None] * length + np.arange(-1, length + 1)
        ids = self._store.checked(words[positions.clip(0, last)]).astype(np.int64)
        here = positions[:, 1:-1]
        there = here < last  # the text's last word has no word behind it, and a sample predicts both or neither
        mask = here <= last
        characters = np.where(mask[..., None], self._characters[ids[:, 1:-1]], PADDING).astype(np.int64)
        targets = np.where(there, ids[:, 2:], IGNORED)
        before = np.where(there & (here > 0), ids[:, :-2], IGNORED)
        batch = {"characters": characters, "targets": targets, "before": before, "mask": mask}
        return {name: torch.from_numpy(array) for name, array in batch.items()}
