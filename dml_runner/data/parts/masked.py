"""Running text of which some words are hidden (Devlin et al. 2019, section 3.1, in the variant that hides whole words)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dml_runner.data.parts.order import Order, SampleOrder, check_samples, raw_numbers
from dml_runner.data.parts.store import open_store
from dml_runner.data.parts.tokenizer import AROUND
from dml_runner.facts import DataFacts
from dml_runner.models.parts.language import IGNORED

MASKED, REPLACED = 0.8, 0.9
"""Of the tokens to find, this share shows as [MASK], and from there up to this share as a random token; the rest shows as it is."""
TRAINING, HELD_OUT = 1, 2
"""Last word of a random stream's number: keeps the streams apart from each other and from that of ``order.permutation``."""


class MaskedData:
    """Samples of ``seq_len`` tokens, [CLS] and [SEP] around them included; the training text's last, short one is left out.

    Args:
        facts: of the prepared text.
        share: of the tokens of a sample that are to be found; whole words are taken at random until it is reached, and one at least.
        seed: what is hidden from training depends on it, the sample and the epoch; from evaluation, on the sample alone.

    Raises:
        ConfigError: the prepared data is gone or damaged.
    """

    def __init__(self, facts: DataFacts, share: float, seed: int) -> None:
        store = open_store(facts.store)
        tokenizer = store.tokenizer
        assert tokenizer.mask is not None, "preparing refuses tokenizers that cannot hide a token"
        self.facts = facts
        self._share, self._seed = share, seed
        self._store = store
        self._pad, self._mask, self._first, self._last = tokenizer.pad, tokenizer.mask, tokenizer.first, tokenizer.last
        self._starts = tokenizer.starts_word()
        special = [token for token in (self._mask, self._first, self._last, self._pad) if token is not None]
        self._ordinary = np.setdiff1d(np.arange(tokenizer.size), special)
        self._train, self._held_out = store.tokens("train"), store.tokens("eval")

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled."""
        return SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """``inputs`` and ``targets``, int64 (n, seq_len); a target is -100 where nothing is to be found."""
        check_samples(picks[:, 0], self.facts.train_samples)
        batch = self._batch(self._train, picks[:, 0], picks[:, 1], TRAINING)
        del batch["mask"]
        return batch

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out samples, and ``mask``, bool (n, seq_len), false behind the end of the last one."""
        return self._batch(self._held_out, indices, np.zeros_like(indices), HELD_OUT)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``.

        Raises:
            ConfigError: a character has no UTF-8 form; the first such is named.
        """
        return self._store.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; what is no token at all shows as the replacement character."""
        return self._store.tokenizer.decode(ids)

    def _batch(self, tokens: np.ndarray, samples: np.ndarray, epochs: np.ndarray, stream: int) -> dict[str, Tensor]:
        own = self.facts.seq_len - AROUND
        positions = samples[:, None] * own + np.arange(own)
        text = positions < len(tokens)
        ids = self._store.checked(tokens[positions.clip(max=len(tokens) - 1)]).astype(np.int64)
        seed = self._seed if stream == TRAINING else 0
        rows = zip(samples.tolist(), epochs.tolist(), strict=True)
        numbers = np.stack([raw_numbers(3 * own, seed, epoch, stream, sample) for sample, epoch in rows]).reshape(-1, 3, own)
        sought = chosen_words(self._starts[ids], text, numbers[:, 0], self._share)
        shown = self._disguised(ids, numbers[:, 1], numbers[:, 2])
        lengths = text.sum(axis=1)
        places = np.arange(self.facts.seq_len)
        inputs = np.full((len(samples), self.facts.seq_len), self._pad)
        inputs[:, 0] = self._first
        inputs[:, 1:-1] = np.where(text, np.where(sought, shown, ids), self._pad)
        inputs[np.arange(len(samples)), lengths + 1] = self._last
        targets = np.full_like(inputs, IGNORED)
        targets[:, 1:-1] = np.where(sought, ids, IGNORED)
        mask = places < (lengths + AROUND)[:, None]
        return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets), "mask": torch.from_numpy(mask)}

    def _disguised(self, ids: np.ndarray, fates: np.ndarray, others: np.ndarray) -> np.ndarray:
        """What shows in the place of each token, if it is to be found."""
        fate = (fates >> np.uint64(11)) * 2.0**-53
        random = self._ordinary[others % np.uint64(len(self._ordinary))]
        return np.where(fate < MASKED, self._mask, np.where(fate < REPLACED, random, ids))


def chosen_words(starts: np.ndarray, text: np.ndarray, keys: np.ndarray, share: float) -> np.ndarray:
    """Whole words in random order until ``share`` of the tokens of their sample is reached, bool (n, length).

    Args:
        starts: whether a token begins a word, bool (n, length); the first of a sample does in any case.
        text: whether there is a token, bool (n, length); where there is none, all that follow are missing too.
        keys: random numbers, (n, length): the i-th word's place in the order is that of the i-th number among those of all.
        share: of the tokens, 0 to 1; at least one word is chosen.
    """
    samples, length = starts.shape
    first = starts.copy()
    first[:, 0] = False
    word = np.cumsum(first, axis=1)
    flat = (word + np.arange(samples)[:, None] * length)[text]
    sizes = np.bincount(flat, minlength=samples * length).reshape(samples, length)
    order = np.argsort(np.where(sizes > 0, keys, np.iinfo(np.uint64).max), axis=1, kind="stable")
    sorted_sizes = np.take_along_axis(sizes, order, axis=1)
    before = np.cumsum(sorted_sizes, axis=1) - sorted_sizes
    wanted = np.maximum(np.rint(share * text.sum(axis=1)), 1)
    chosen = np.zeros((samples, length), bool)
    np.put_along_axis(chosen, order, before < wanted[:, None], axis=1)
    hidden: np.ndarray = np.take_along_axis(chosen, word, axis=1) & text
    return hidden
