"""Samples that are made up as they are asked for: each a function of its number alone, so there is nothing to store."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from dml_runner.data.parts.order import Order, SampleOrder, StreamOrder, check_samples
from dml_runner.facts import DataFacts, Task
from dml_runner.models.parts.characters import BEGIN_WORD, END_WORD, PADDING
from dml_runner.models.parts.language import IGNORED

STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LETTERS, LONGEST_WORD = 26, 6
NOISE = 65_521
"""Images begin at one of so many places of one row of noise; a prime, so that neighbours in it differ in every channel."""
LABEL, TRAINING, HELD_OUT, IMAGE, HIDDEN = range(5)
"""What a number is drawn for: each has numbers of its own."""


def scrambled(*key: np.ndarray | int) -> np.ndarray:
    """A random uint64 for each key, whose parts are broadcast: SplitMix64's output function over them (Steele et al. 2014, section 3)."""
    mixed = np.zeros(1, np.uint64)
    for part in key:
        mixed = (mixed ^ np.asarray(part).astype(np.uint64)) + STEP
        mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def below(bound: int, *key: np.ndarray | int) -> np.ndarray:
    """A random number from 0 to ``bound`` - 1 for each key, int64."""
    return (scrambled(*key) % np.uint64(bound)).astype(np.int64)


class MadeUpText:
    """A text without end, of tokens drawn alike and one by one, cut as real text is for the same task.

    Args:
        facts: how much of it is used, and how it is cut.
        task: what the model wants.
        seed: what is hidden depends on it, the sample and the epoch.
    """

    def __init__(self, facts: DataFacts, task: Task, seed: int) -> None:
        self.facts = facts
        self._task = task
        self._seed = seed

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled, or those that the streams have come to."""
        return StreamOrder(self.facts.train_samples) if self._task.streams else SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """A batch of the task; of streams also ``first``, true where the text begins anew."""
        check_samples(picks[:, 0], self.facts.train_samples)
        if self._task.objective == "masked":
            return self._hidden(TRAINING, picks[:, 0], picks[:, 1], self._seed)
        batch = self._running(TRAINING, picks[:, 0], 0)
        if self._task.streams:
            batch["first"] = torch.from_numpy(picks[:, 0] == 0)
        return batch

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out samples, which have a text of their own; of streams each begins one sample early, as real ones do."""
        if self._task.objective == "masked":
            return self._hidden(HELD_OUT, indices, np.zeros_like(indices), 0)
        return self._running(HELD_OUT, indices, self.facts.seq_len if self._task.streams else 0)

    def _running(self, text: int, samples: np.ndarray, before: int) -> dict[str, Tensor]:
        length = self.facts.seq_len
        positions = samples[:, None] * length + np.arange(-before - 1, length + 1)
        tokens = below(self.facts.vocabulary, text, positions)
        targets = tokens[:, 2:].copy()
        targets[:, :before] = IGNORED
        if self._task.reads == "tokens":
            return {"inputs": torch.from_numpy(tokens[:, 1:-1].copy()), "targets": torch.from_numpy(targets)}
        earlier = np.where(positions[:, :-2] < 0, IGNORED, tokens[:, :-2])
        characters = characters_of(tokens[:, 1:-1], self._task.word_length)
        return {name: torch.from_numpy(values) for name, values in (("characters", characters), ("targets", targets), ("before", earlier))}

    def _hidden(self, text: int, samples: np.ndarray, epochs: np.ndarray, seed: int) -> dict[str, Tensor]:
        """The highest id stands for a hidden token, and for nothing else."""
        length, mask = self.facts.seq_len, self.facts.vocabulary - 1
        places = np.arange(length)
        tokens = below(mask, text, samples[:, None] * length + places)
        turn = np.argsort(scrambled(HIDDEN, seed % (1 << 64), text, epochs[:, None], samples[:, None], places), axis=1)
        hidden = np.zeros(tokens.shape, bool)
        np.put_along_axis(hidden, turn[:, : max(1, round(self._task.hidden_share * length))], True, axis=1)
        inputs, targets = np.where(hidden, mask, tokens), np.where(hidden, tokens, IGNORED)
        return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}


class Labelled:
    """Labelled samples, made part by part: the same of those to train on and those held out.

    Attributes:
        facts: how many there are, and of what form.
    """

    facts: DataFacts

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled."""
        return SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """A batch of the training samples ``picks``."""
        check_samples(picks[:, 0], self.facts.train_samples)
        return self._batch(TRAINING, picks[:, 0])

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out samples."""
        return self._batch(HELD_OUT, indices)

    @abstractmethod
    def _batch(self, part: int, samples: np.ndarray) -> dict[str, Tensor]:
        """The samples of one part, and their labels."""


class MadeUpTexts(Labelled):
    """Texts, all as long as can be; text and label have nothing to do with each other.

    A batch is ``inputs`` (n, seq_len) or ``characters`` (n, seq_len, word_length), ``mask`` (n, seq_len), all true, and ``targets`` (n,).
    """

    def __init__(self, facts: DataFacts, task: Task) -> None:
        self.facts = facts
        self._word_length = task.word_length

    def _batch(self, text: int, samples: np.ndarray) -> dict[str, Tensor]:
        tokens = below(self.facts.vocabulary, text, samples[:, None] * self.facts.seq_len + np.arange(self.facts.seq_len))
        mask, targets = torch.ones(tokens.shape, dtype=torch.bool), torch.from_numpy(below(self.facts.classes, LABEL, text, samples))
        if not self._word_length:
            return {"inputs": torch.from_numpy(tokens), "mask": mask, "targets": targets}
        return {"characters": torch.from_numpy(characters_of(tokens, self._word_length)), "mask": mask, "targets": targets}


class MadeUpImages(Labelled):
    """Images of noise with mean 0 and standard deviation 1; image and label have nothing to do with each other.

    A batch is ``images`` (n, channels, height, width), fp32, and ``targets`` (n,).
    """

    def __init__(self, facts: DataFacts) -> None:
        self.facts = facts
        size = int(np.prod(facts.image))
        uniform = scrambled(IMAGE, np.arange(size + NOISE)) / 2.0**64
        self._noise = ((uniform - 0.5) * 12**0.5).astype(np.float32)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._noise, size)

    def _batch(self, part: int, samples: np.ndarray) -> dict[str, Tensor]:
        images = self._windows[below(NOISE, IMAGE, part, samples)].reshape(-1, *self.facts.image)
        return {"images": torch.from_numpy(images), "targets": torch.from_numpy(below(self.facts.classes, LABEL, part, samples))}


def characters_of(words: np.ndarray, length: int) -> np.ndarray:
    """Ids of the characters of each word, int64 (..., length): a word's number in letters, between two borders."""
    letters = max(1, min(LONGEST_WORD, length - 2))
    digits = words[..., None] // LETTERS ** np.arange(letters) % LETTERS + ord("a")
    characters = np.full((*words.shape, max(length, letters + 2)), PADDING, np.int64)
    characters[..., 0], characters[..., letters + 1] = BEGIN_WORD, END_WORD
    characters[..., 1 : letters + 1] = digits
    return characters[..., :length]
