"""Stored images as batches: decoded when they are wanted, cut, mirrored and normalised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dml_runner.data.parts.labels import Part
from dml_runner.data.parts.order import Order, SampleOrder
from dml_runner.data.parts.picture_store import PARTS, load_pictures
from dml_runner.data.parts.pictures import Unreadable, pixels_of, require_pillow
from dml_runner.data.parts.transforms import augment, fitted
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.schema.data import Images


class PictureData:
    """Images of a store and their labels.

    Args:
        facts: of the images.
        words: how they are cut and normalised.
        roots: the folders in which those of each part have their names; None: the store holds the files themselves.
        seed: how training images are cut and mirrored depends on it, the sample and the epoch, and on nothing else.

    Raises:
        ConfigError: the prepared data is gone, or Pillow is.
    """

    def __init__(self, facts: DataFacts, words: Images, roots: Mapping[Part, Path] | None, seed: int) -> None:
        store = load_pictures(Path(facts.store))
        if store is None:
            raise ConfigError(Problem("data", "the prepared images are missing or damaged", got=facts.store, hint="prepare the data again"))
        require_pillow()
        self.facts = facts
        self._words, self._roots, self._seed = words, roots, seed
        self._parts = {part: (store.kept(part), store.spans(part), store.numbers(part)) for part in PARTS}
        self._shape = (store.channels, *store.shape)
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (words.mean or store.mean, words.std or store.std))

    def order(self, seed: int) -> Order:
        """Which samples form step k: shuffled."""
        return SampleOrder(self.facts.train_samples, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """``images`` (n, channels, height, width), fp32, and ``targets`` (n,), int64.

        Raises:
            ConfigError: a file is gone, or no longer the image it was.
        """
        images = augment(self._images("train", picks[:, 0]), self._words, picks, self._seed)
        return self._batch(images, "train", picks[:, 0])

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The same of the held-out images, neither cut nor mirrored."""
        return self._batch(self._images("eval", indices), "eval", indices)

    def _batch(self, images: Tensor, part: Part, samples: np.ndarray) -> dict[str, Tensor]:
        labels = self._parts[part][2][samples]
        if int(labels.max()) >= self.facts.classes:  # it would end in a crash inside the device
            what, hint = "the prepared images are damaged: a label is too high", f"remove {self.facts.store} and start again"
            raise ConfigError(Problem("data", what, str(labels.max()), f"0 to {self.facts.classes - 1}", hint))
        return {"images": (images - self._mean) / self._std, "targets": torch.from_numpy(labels.astype(np.int64))}

    def _images(self, part: Part, samples: np.ndarray) -> Tensor:
        images = [torch.from_numpy(self._pixels(part, int(sample)))[None].float().div_(255) for sample in samples]
        return torch.cat([fitted(image, self._words.size) for image in images])

    def _pixels(self, part: Part, sample: int) -> np.ndarray:
        """One image, uint8 (channels, height, width), writable."""
        kept, spans, _ = self._parts[part]
        begin, end = spans[sample]
        content = kept[begin:end].tobytes()
        name = f"image {sample} in {self.facts.store}"
        try:
            if self._roots is not None:
                path = self._roots[part] / os.fsdecode(content)
                name = str(path)
                content = path.read_bytes()
            pixels = pixels_of(content)
        except OSError as error:
            raise _changed(name, error.strerror or str(error)) from None
        except Unreadable as wrong:
            raise _changed(name, str(wrong)) from None
        channels, *size = self._shape
        if len(pixels) > channels or (self._words.size is None and list(pixels.shape[1:]) != size):
            raise _changed(name, "other channels, or another size")
        return np.repeat(pixels, channels, axis=0) if len(pixels) < channels else pixels.copy()


def _changed(name: str, what: str) -> ConfigError:
    return ConfigError(Problem("data", "an image is not what it was when the data was prepared", f"{name} ({what})", hint="start again"))
