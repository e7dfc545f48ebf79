"""Labelled images in memory as batches, cut, mirrored and normalised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dml_runner.data.parts.order import Order, SampleOrder
from dml_runner.data.parts.pixels import Pixels
from dml_runner.data.parts.transforms import augment, fitted
from dml_runner.facts import DataFacts
from dml_runner.schema.data import Images


@dataclass(frozen=True)
class ImageData:
    """Images and their labels.

    Attributes:
        facts: of the images.
        words: how they are cut and normalised.
        pixels: the images and labels themselves.
        seed: how training images are cut and mirrored depends on it, the sample and the epoch, and on nothing else.
    """

    facts: DataFacts
    words: Images
    pixels: Pixels
    seed: int

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled."""
        return SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """``images`` (n, channels, height, width), fp32, and ``targets`` (n,), int64."""
        images = torch.from_numpy(self.pixels.train[picks[:, 0]]).float().div_(255)
        images = augment(fitted(images, self.words.size), self.words, picks, self.seed)
        return self._batch(images, self.pixels.train_labels[picks[:, 0]])

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out images, neither cut nor mirrored."""
        images = torch.from_numpy(self.pixels.held_out[indices]).float().div_(255)
        return self._batch(fitted(images, self.words.size), self.pixels.held_out_labels[indices])

    def _batch(self, images: Tensor, labels: np.ndarray) -> dict[str, Tensor]:
        mean, std = self.pixels.normalisation(self.words)
        shape = (1, -1, 1, 1)
        images = (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        return {"images": images, "targets": torch.from_numpy(labels.astype(np.int64))}
