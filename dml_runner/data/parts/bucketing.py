"""Batches of texts of like length, so that little of a batch is padding, out of samples that come in random order all the same."""

from __future__ import annotations

import numpy as np

from dml_runner.data.parts.order import SampleOrder, raw_numbers

WINDOW = 32
"""Global batches whose samples are sorted together: enough to make lengths alike, few enough that a batch stays a random one."""


class BucketedOrder:
    """The row of epochs of ``SampleOrder``, sorted by length inside windows of 32 global batches.

    Windows are counted from the first step. What one of them holds of one epoch is sorted by length and cut where steps begin, and
    the whole batches are shuffled. A step in which one epoch ends and the next begins gets the shortest samples of either.

    Args:
        lengths: tokens of each sample, int64 (samples,).
        seed: any integer from 0.
    """

    def __init__(self, lengths: np.ndarray, seed: int) -> None:
        self._lengths = lengths
        self._row = SampleOrder(len(lengths), seed)
        self._seed = seed
        self._pieces: dict[tuple[int, int, int], np.ndarray] = {}

    def step(self, k: int, global_batch: int) -> np.ndarray:
        """The picks of step k (from 1), int64 (global_batch, 2): a sample's number and its epoch."""
        position, end = (k - 1) * global_batch, k * global_batch
        pieces = []
        while position < end:
            epoch = position // self._row.samples
            stop = min(end, (epoch + 1) * self._row.samples)
            begin, samples = self._piece(epoch, (k - 1) // WINDOW, global_batch)
            there = samples[position - begin : stop - begin]
            pieces.append(np.stack((there, np.full(len(there), epoch)), axis=1))
            position = stop
        return np.concatenate(pieces)

    def _piece(self, epoch: int, window: int, global_batch: int) -> tuple[int, np.ndarray]:
        """What a window holds of an epoch: its first position in the row of epochs, and the samples from there on."""
        samples, length = self._row.samples, WINDOW * global_batch
        begin, end = max(epoch * samples, window * length), min((epoch + 1) * samples, (window + 1) * length)
        piece = self._pieces.get((epoch, window, global_batch))
        if piece is None:
            chosen = self._row.epoch(epoch)[begin - epoch * samples : end - epoch * samples]
            chosen = chosen[np.argsort(self._lengths[chosen], kind="stable")]
            before = min(-begin % global_batch, end - begin)
            behind = (end - begin - before) % global_batch
            whole = chosen[before + behind :].reshape(-1, global_batch)
            whole = whole[_shuffled(len(whole), self._seed, epoch, window)]
            piece = np.concatenate((chosen[:before], whole.ravel(), chosen[before : before + behind]))
            newest = list(self._pieces.items())[-3:]
            self._pieces = {**dict(newest), (epoch, window, global_batch): piece}
        return begin, piece


def _shuffled(count: int, seed: int, epoch: int, window: int) -> np.ndarray:
    """0 to count - 1 in a random order; from a stream of its own, beside that of ``order.permutation``."""
    return np.argsort(raw_numbers(count, seed, epoch, stream=window + 1), kind="stable")
