"""Running text of which some words are hidden (Devlin et al. 2019, section 3.1, with whole words)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dml_runner.data.parts.folder import TOKENIZER
from dml_runner.data.parts.order import Order, SampleOrder
from dml_runner.data.parts.tokenizer import load_tokenizer
from dml_runner.data.parts.tokens import opened_store
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.models.parts.language import IGNORED

HIDDEN, REPLACED = 0.8, 0.9
"""Of the tokens that are asked for, this share is hidden, and up to this share another token stands there; the rest stays."""
HELD_OUT = 1 << 32
"""In place of an epoch's number, for samples that are held out: what is hidden of them is always the same."""
STREAM = 0x6D61736B << 32
"""Keeps these random numbers apart from those of the samples' order."""


class MaskedData:
    """Samples of ``seq_len`` tokens, [CLS] and [SEP] around them included; the training text's last, short one is left out.

    Args:
        facts: of the prepared text.
        share: of the tokens of a sample that are asked for; whole words are taken until it is reached.
        seed: what is hidden depends on it, the sample and the epoch, and on nothing else.

    Raises:
        ConfigError: the prepared data is gone, or the tokenizer has no token that hides others.
    """

    def __init__(self, facts: DataFacts, share: float, seed: int) -> None:
        store = opened_store(facts)
        tokenizer = load_tokenizer(store.folder / TOKENIZER)
        if tokenizer.mask is None or tokenizer.first is None or tokenizer.last is None:
            what = "the model learns hidden tokens, and the tokenizer has no [MASK], [CLS] and [SEP]"
            raise ConfigError(Problem("data.tokenizer", what, got=tokenizer.kind, allowed="wordpiece, or a file of a tokenizer that has"))
        self.facts = facts
        self._share = share
        self._seed = seed
        self._tokenizer = tokenizer
        self._mask, self._first, self._last = tokenizer.mask, tokenizer.first, tokenizer.last
        self._starts = tokenizer.starts_word()
        self._train, self._held_out = store.tokens("train"), store.tokens("eval")
        self._own = facts.seq_len - 2

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled."""
        return SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """``inputs`` and ``targets``, int64 (n, seq_len)."""
        if picks[:, 0].max() >= self.facts.train_samples:
            raise IndexError(f"there are {self.facts.train_samples} samples")
        batch = self._batch(self._train, picks)
        del batch["mask"]
        return batch

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out samples, and ``mask``, false behind the end of the text."""
        return self._batch(self._held_out, np.stack((indices, np.full(len(indices), HELD_OUT)), axis=1))

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return self._tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``."""
        return self._tokenizer.decode(ids)

    def _batch(self, tokens: np.ndarray, picks: np.ndarray) -> dict[str, Tensor]:
        inputs = np.full((len(picks), self.facts.seq_len), self._tokenizer.pad, np.int64)
        targets = np.full_like(inputs, IGNORED)
        inputs[:, 0] = self._first
        for row, (sample, epoch) in enumerate(picks.tolist()):
            own = tokens[sample * self._own : (sample + 1) * self._own].astype(np.int64)
            end = len(own) + 1
            inputs[row, 1:end], targets[row, 1:end] = self._hide(own, sample, epoch)
            inputs[row, end] = self._last
        ends = np.array([min(self._own, len(tokens) - sample * self._own) + 2 for sample in picks[:, 0].tolist()])
        mask = np.arange(self.facts.seq_len) < ends[:, None]
        return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets), "mask": torch.from_numpy(mask)}

    def _hide(self, ids: np.ndarray, sample: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """What the model sees of ``ids``, and what it is asked for."""
        starts = self._starts[ids]
        starts[0] = True
        word = np.cumsum(starts) - 1
        words = int(word[-1]) + 1
        seed = 0 if epoch == HELD_OUT else self._seed
        generator = np.random.Philox(key=(epoch << 64) | ((seed ^ STREAM) % (1 << 64)), counter=(sample + 1) << 192)
        numbers = generator.random_raw(words + 2 * len(ids))
        turn = np.argsort(numbers[:words], kind="stable")
        reached = np.cumsum(np.bincount(word)[turn])
        taken = np.zeros(words, bool)
        taken[turn[: int(np.searchsorted(reached, max(1, round(self._share * len(ids))))) + 1]] = True
        asked = taken[word]
        what = numbers[words : words + len(ids)] / 2.0**64
        other = (numbers[words + len(ids) :] % np.uint64(self.facts.vocabulary)).astype(np.int64)
        seen = np.where(what < HIDDEN, self._mask, np.where(what < REPLACED, other, ids))
        return np.where(asked, seen, ids), np.where(asked, ids, IGNORED)
