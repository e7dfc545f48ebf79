"""What a model is trained on. ``name: text`` means data/text.py; preparing needs no torch, reading batches does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_runner import plugins
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import Data as DataSection

if TYPE_CHECKING:
    from dml_runner.data.base import Data


def prepare(words: DataSection, task: Task, cache: Path) -> DataFacts:
    """Read, check and store the data that ``words`` describe, once: what is stored already is used again.

    Args:
        words: the ``data`` section of a job.
        task: what the model wants of it.
        cache: folder that keeps prepared data; made where missing.

    Raises:
        ConfigError: the data is missing, malformed, too small or not what the model reads, or cannot be stored.
    """
    facts: DataFacts = _option(words.name).prepare(words, task, cache)
    return facts


def open_data(words: DataSection, task: Task, facts: DataFacts, seed: int) -> Data:
    """The prepared data, ready to give batches; what is hidden or augmented at random depends on ``seed``.

    Raises:
        ConfigError: the prepared data is gone.
    """
    data: Data = _option(words.name).open_data(words, task, facts, seed)
    return data


def _option(name: str) -> Any:
    return plugins.module("data", name) or importlib.import_module(f"dml_runner.data.{name}")
