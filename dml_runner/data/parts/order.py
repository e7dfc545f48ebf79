"""Which samples form step k, and which of them are whose: a function of the seed and k, not of the ranks."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Order(Protocol):
    """An endless row of samples, cut into steps."""

    def step(self, k: int, global_batch: int) -> np.ndarray:
        """The picks of step k (from 1), int64 (global_batch, 2): a sample's number and how often it came before."""


class SampleOrder:
    """An endless row of epochs, each of them every sample once, in an order of its own.

    Args:
        samples: samples of one epoch, at least 1.
        seed: any integer from 0.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        self._epochs: dict[int, np.ndarray] = {}

    def step(self, k: int, global_batch: int) -> np.ndarray:
        """The k-th piece of ``global_batch`` picks of the row of epochs."""
        position, end = (k - 1) * global_batch, k * global_batch
        pieces = []
        while position < end:
            epoch, start = divmod(position, self.samples)
            stop = min(self.samples, start + end - position)
            samples = self.epoch(epoch)[start:stop]
            pieces.append(np.stack((samples, np.full(len(samples), epoch)), axis=1))
            position += stop - start
        return np.concatenate(pieces)

    def epoch(self, epoch: int) -> np.ndarray:
        """The samples of one epoch in its order, int64."""
        order = self._epochs.get(epoch)
        if order is None:
            order = permutation(self.samples, self.seed, epoch)
            kept = {number: other for number, other in self._epochs.items() if abs(number - epoch) == 1}
            self._epochs = {**kept, epoch: order}
        return order


class StreamOrder:
    """``global_batch`` streams side by side through one long text, each going on where it was a step before, and round and round.

    Args:
        samples: pieces of the text, in their order.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def step(self, k: int, global_batch: int) -> np.ndarray:
        """The picks of step k; stream i begins at the i-th of ``global_batch`` equal parts of the text."""
        places = np.arange(global_batch, dtype=np.int64) * self.samples // global_batch + (k - 1)
        return np.stack((places % self.samples, places // self.samples), axis=1)


def permutation(samples: int, seed: int, epoch: int) -> np.ndarray:
    """0 to samples - 1 in the order of one epoch, int64.

    Sorted by the raw numbers of a counter-based generator, whose stream numpy promises never to change; that of
    ``Generator.permutation`` it may change, and a run resumed under another numpy would see samples twice.
    """
    return np.argsort(raw_numbers(samples, seed, epoch), kind="stable").astype(np.int64, copy=False)


def raw_numbers(count: int, seed: int, epoch: int, stream: int = 0, sample: int = 0) -> np.ndarray:
    """``count`` random numbers, uint64, that depend on nothing but the other arguments.

    Args:
        count: how many.
        seed: any integer from 0.
        epoch: below 2^64, as the following.
        stream: what they are for; 0 is the order of the samples.
        sample: whose they are, of those that have numbers of their own in this stream.
    """
    generator = np.random.Philox(key=(epoch << 64) | (seed % (1 << 64)), counter=(stream << 192) | (sample << 64))
    numbers: np.ndarray = generator.random_raw(count)
    return numbers


def check_samples(samples: np.ndarray, count: int) -> None:
    """Where samples are worked out from their number, refuse one that does not exist.

    Raises:
        IndexError: a number is not below ``count``.
    """
    if samples.max(initial=0) >= count:
        raise IndexError(f"there are {count} samples")


def slice_of(picks: np.ndarray, data_rank: int, data_ranks: int, micro: int, accumulation: int) -> list[np.ndarray]:
    """The micro-batches of one rank: ``accumulation`` arrays of ``micro`` picks.

    Micro-batch a of all ranks together is ``picks[a * micro * data_ranks : (a + 1) * micro * data_ranks]``.

    Raises:
        ValueError: ``picks`` are not micro x accumulation x data_ranks.
    """
    if len(picks) != micro * accumulation * data_ranks:
        raise ValueError(f"{len(picks)} samples are not {micro} x {accumulation} x {data_ranks}")
    starts = range(data_rank * micro, len(picks), data_ranks * micro)
    return [picks[start : start + micro] for start in starts]


def eval_shares(samples: int, micro: int, data_rank: int, data_ranks: int) -> list[np.ndarray]:
    """One rank's batches of 0 to samples - 1, int64: contiguous batches of ``micro``, dealt to the ranks in turn.

    Every sample goes to one rank; the last batch may be short, and a rank may get one batch less than another, or none.
    """
    starts = range(data_rank * micro, samples, data_ranks * micro)
    return [np.arange(start, min(start + micro, samples), dtype=np.int64) for start in starts]
