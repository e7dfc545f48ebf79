"""Labelled images as they were read, before any transform; no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import Images

Channels = tuple[float, ...]


@dataclass(frozen=True)
class Pixels:
    """Images, uint8 (n, channels, height, width), and their labels, (n,), to train on and held out."""

    train: np.ndarray
    train_labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray

    @cached_property
    def measured(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of each channel of the training images, whose values are 0 to 1."""
        channels = [self.train[:, number].astype(np.float32) / 255 for number in range(self.train.shape[1])]
        means = tuple(float(values.mean(dtype=np.float64)) for values in channels)
        return means, tuple(max(float(values.std(dtype=np.float64)), 1e-6) for values in channels)

    def normalisation(self, words: Images) -> tuple[Channels, Channels]:
        """Mean and standard deviation of each channel, by the words or as measured."""
        return words.mean or self.measured[0], words.std or self.measured[1]


def image_facts(name: str, pixels: Pixels, words: Images, task: Task, digests: Mapping[str, str]) -> DataFacts:
    """What labelled images are.

    Raises:
        ConfigError: the model reads no images, the words do not go with the images, or there are too few.
    """
    refuse_other_models(name, task)
    channels, height, width = pixels.train.shape[1:]
    problems = wrong_normalisation(words, channels)
    labels = np.unique(pixels.train_labels)
    if len(labels) < 2 or not len(pixels.held_out):
        problems.append(Problem("data", "too few images", got=f"{len(labels)} labels, {len(pixels.held_out)} held out", allowed="2 labels"))
    elif pixels.held_out_labels.max() > labels.max():
        what = "a held-out image has a label that no training image has"
        problems.append(Problem("data", what, got=str(pixels.held_out_labels.max()), allowed=f"0 to {labels.max()}"))
    if problems:
        raise ConfigError(*problems)
    return DataFacts(
        kind="images",
        train_samples=len(pixels.train),
        eval_samples=len(pixels.held_out),
        sample_weight=1,
        sample_tokens=0,
        vocabulary=0,
        seq_len=0,
        digests=dict(digests),
        store="",
        classes=int(labels.max()) + 1,
        image=(channels, words.size or height, words.size or width),
    )


def refuse_other_models(name: str, task: Task) -> None:
    """Images are there to be seen.

    Raises:
        ConfigError: the model reads none.
    """
    if task.reads != "images":
        raise ConfigError(Problem("data", f"holds images, and the model reads {task.reads}", got=f"data={name}", hint="model=resnet"))


def wrong_normalisation(words: Images, channels: int) -> list[Problem]:
    """What is wrong with the numbers that are given for each channel."""
    return [
        Problem(f"data.{key}", "not a number for each channel", got=str(len(values)), allowed=str(channels))
        for key, values in (("mean", words.mean), ("std", words.std))
        if values is not None and len(values) != channels
    ]


def digest_of(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes, as hex."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def every_tenth(images: np.ndarray, labels: np.ndarray) -> Pixels:
    """Every tenth image held out, the others to train on."""
    chosen = np.arange(len(images)) % 10 == 9
    return Pixels(images[~chosen], labels[~chosen], images[chosen], labels[chosen])
