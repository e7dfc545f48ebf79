"""Running text as characters of words, each with the word behind and the word before it to predict."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dml_runner.data.parts.folder import TOKENIZER
from dml_runner.data.parts.order import Order, SampleOrder
from dml_runner.data.parts.plain_tokenizers import WordTokenizer
from dml_runner.data.parts.tokenizer import load_tokenizer
from dml_runner.data.parts.tokens import opened_store
from dml_runner.data.parts.words import character_table
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.models.parts.language import IGNORED


class NeighbourData:
    """Samples of ``seq_len`` words; sample i starts at word i x seq_len.

    Args:
        facts: of the prepared text.
        word_length: characters of a word that are seen.

    Raises:
        ConfigError: the prepared data is gone, or its tokens are no words.
    """

    def __init__(self, facts: DataFacts, word_length: int) -> None:
        store = opened_store(facts)
        tokenizer = load_tokenizer(store.folder / TOKENIZER)
        if not isinstance(tokenizer, WordTokenizer):
            raise ConfigError(Problem("data.tokenizer", "the model reads the characters of words", got=tokenizer.kind, allowed="word"))
        self.facts = facts
        self._tokenizer = tokenizer
        self._characters = character_table(["", *tokenizer.words], word_length)
        self._train, self._held_out = store.tokens("train"), store.tokens("eval")

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled."""
        return SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """``characters`` (n, seq_len, word_length), ``targets`` and ``before`` (n, seq_len), int64; the first word has none before."""
        if picks[:, 0].max() >= self.facts.train_samples:
            raise IndexError(f"there are {self.facts.train_samples} samples")
        return self._batch(self._train, picks[:, 0])

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out samples; behind the end of the text nothing is predicted."""
        return self._batch(self._held_out, indices)

    def encode(self, text: str) -> list[int]:
        """Ids of the words of ``text``."""
        return self._tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The words of ``ids``."""
        return self._tokenizer.decode(ids)

    def _batch(self, words: np.ndarray, samples: np.ndarray) -> dict[str, Tensor]:
        length, last = self.facts.seq_len, len(words) - 1
        positions = samples[:, None] * length + np.arange(-1, length + 1)
        ids = words[positions.clip(0, last)].astype(np.int64)
        here = positions[:, 1:-1]
        there = here < last  # the text's last word has no word behind it, and a sample predicts both or neither
        characters = self._characters[ids[:, 1:-1]].astype(np.int64)
        targets = np.where(there, ids[:, 2:], IGNORED)
        before = np.where(there & (here > 0), ids[:, :-2], IGNORED)
        return {"characters": torch.from_numpy(characters), "targets": torch.from_numpy(targets), "before": torch.from_numpy(before)}
