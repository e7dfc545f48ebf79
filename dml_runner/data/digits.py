"""``data=digits``: 1,797 handwritten digits that ship with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dml_runner.data.parts.pixels import Pixels, digest_of, every_tenth, image_facts
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import Digits

if TYPE_CHECKING:
    from dml_runner.data.base import Data


def prepare(words: Digits, task: Task, cache: Path) -> DataFacts:
    """Count the digits; every tenth is held out.

    Raises:
        ConfigError: scikit-learn is not installed, or the model reads no images.
    """
    pixels = _pixels()
    return image_facts(words.name, pixels, words, task, {"sklearn.datasets.load_digits": digest_of(pixels.train)})


def open_data(words: Digits, task: Task, facts: DataFacts, seed: int) -> Data:
    """The digits, ready to give batches."""
    from dml_runner.data.parts.images import ImageData

    return ImageData(facts, words, _pixels(), seed)


def _pixels() -> Pixels:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        hint = "pip install 'dml_runner[images]'"
        raise ConfigError(Problem("data", "the digits ship with scikit-learn", got="it is not installed", hint=hint)) from None
    found = load_digits()
    images = np.round(found.images[:, None] * (255 / 16)).astype(np.uint8)
    return every_tenth(images, found.target)
