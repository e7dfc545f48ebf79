"""Which samples form step k, and which of them are whose: a function of the seed and k, not of the ranks."""

from __future__ import annotations

import numpy as np


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
        """The ``global_batch`` samples of step k (from 1), int64: the k-th piece of that length of the row of epochs."""
        position, end = (k - 1) * global_batch, k * global_batch
        pieces = []
        while position < end:
            epoch, start = divmod(position, self.samples)
            stop = min(self.samples, start + end - position)
            pieces.append(self._epoch(epoch)[start:stop])
            position += stop - start
        return pieces[0].copy() if len(pieces) == 1 else np.concatenate(pieces)

    def epoch_of(self, k: int, global_batch: int) -> float:
        """Epochs behind us after step k."""
        return k * global_batch / self.samples

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            kept = {number: order for number, order in self._epochs.items() if number == epoch - 1}
            self._epochs = {**kept, epoch: permutation(self.samples, self.seed, epoch)}
        return self._epochs[epoch]


def permutation(samples: int, seed: int, epoch: int) -> np.ndarray:
    """0 to samples - 1 in the order of one epoch, int64.

    Sorted by the raw numbers of a counter-based generator, whose stream numpy promises never to change; that of
    ``Generator.permutation`` it may change, and a run resumed under another numpy would see samples twice.
    """
    numbers = np.random.Philox(key=(epoch << 64) | (seed % (1 << 64))).random_raw(samples)
    return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)


def slice_of(indices: np.ndarray, data_rank: int, data_ranks: int, micro: int, accumulation: int) -> list[np.ndarray]:
    """The micro-batches of one rank: ``accumulation`` arrays of ``micro`` samples.

    Micro-batch a of all ranks together is ``indices[a * micro * data_ranks : (a + 1) * micro * data_ranks]``.

    Raises:
        ValueError: ``indices`` are not micro x accumulation x data_ranks.
    """
    if len(indices) != micro * accumulation * data_ranks:
        raise ValueError(f"{len(indices)} samples are not {micro} x {accumulation} x {data_ranks}")
    starts = range(data_rank * micro, len(indices), data_ranks * micro)
    return [indices[start : start + micro] for start in starts]


def eval_shares(samples: int, micro: int, data_rank: int, data_ranks: int) -> list[np.ndarray]:
    """One rank's batches of 0 to samples - 1, int64: contiguous batches of ``micro``, dealt to the ranks in turn.

    Every sample goes to one rank; the last batch may be short, and a rank may get one batch less than another, or none.
    """
    starts = range(data_rank * micro, samples, data_ranks * micro)
    return [np.arange(start, min(start + micro, samples), dtype=np.int64) for start in starts]
