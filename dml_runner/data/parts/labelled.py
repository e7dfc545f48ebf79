"""Labelled texts as batches, padded to the longest of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dml_runner.data.parts.bucketing import BucketedOrder
from dml_runner.data.parts.folder import TOKENIZER
from dml_runner.data.parts.labelled_store import load_labelled
from dml_runner.data.parts.labels import Part
from dml_runner.data.parts.order import Order
from dml_runner.data.parts.plain_tokenizers import WordTokenizer
from dml_runner.data.parts.tokenizer import load_tokenizer
from dml_runner.data.parts.words import character_table
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.models.parts.characters import PADDING

MULTIPLE = 8
"""A batch is padded to a multiple of this many tokens, so that shapes repeat."""


class LabelledData:
    """Texts and their labels.

    Raises:
        ConfigError: the prepared data is gone.
    """

    def __init__(self, facts: DataFacts, task: Task) -> None:
        store = load_labelled(Path(facts.store))
        if store is None:
            raise ConfigError(Problem("data", "the prepared texts are missing or damaged", got=facts.store, hint="prepare the data again"))
        self.facts = facts
        self._tokenizer = load_tokenizer(store.folder / TOKENIZER)
        self._parts: dict[Part, tuple[np.ndarray, np.ndarray, np.ndarray]] = {
            part: (store.tokens(part), store.ends(part), store.numbers(part)) for part in ("train", "eval")
        }
        self._characters = None
        if task.reads == "characters":
            assert isinstance(self._tokenizer, WordTokenizer), "such a store is made of words"
            self._characters = character_table(["", *self._tokenizer.words], task.word_length)

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled, and texts of like length together."""
        return BucketedOrder(np.diff(self._parts["train"][1]), seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """``inputs`` (n, length), or ``characters`` (n, length, word_length), ``mask`` (n, length) and ``targets`` (n,)."""
        return self._batch("train", picks[:, 0])

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out texts."""
        return self._batch("eval", indices)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return self._tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``."""
        return self._tokenizer.decode(ids)

    def _batch(self, part: Part, samples: np.ndarray) -> dict[str, Tensor]:
        tokens, ends, labels = self._parts[part]
        starts = ends[samples]
        lengths = ends[samples + 1] - starts
        longest = min(int(-(-lengths.max() // MULTIPLE) * MULTIPLE), self.facts.seq_len)
        places = np.arange(longest)
        mask = places < lengths[:, None]
        ids = tokens[np.minimum(starts[:, None] + places, len(tokens) - 1)].astype(np.int64)
        self._refuse_damage(int(ids.max()), self.facts.vocabulary, "a token id")
        self._refuse_damage(int(labels[samples].max()), self.facts.classes, "a label")
        batch = {"mask": torch.from_numpy(mask), "targets": torch.from_numpy(labels[samples].astype(np.int64))}
        if self._characters is None:
            return {"inputs": torch.from_numpy(np.where(mask, ids, self._tokenizer.pad)), **batch}
        characters = np.where(mask[..., None], self._characters[ids], PADDING).astype(np.int64)
        return {"characters": torch.from_numpy(characters), **batch}

    def _refuse_damage(self, highest: int, size: int, what: str) -> None:
        """An id that nothing is stored under would end in a crash inside the device."""
        if highest >= size:
            hint = f"remove {self.facts.store} and start again"
            raise ConfigError(
                Problem("data", f"the prepared texts are damaged: {what} is too high", str(highest), f"0 to {size - 1}", hint)
            )
