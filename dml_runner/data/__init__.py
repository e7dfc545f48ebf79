"""What a model is trained on. ``name: text`` means data/text.py; preparing needs no torch, reading batches does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.facts import DataFacts
from dml_runner.schema.data import Data

if TYPE_CHECKING:
    from dml_runner.data.base import TokenData


def prepare(words: Data, context: int, cache: Path) -> DataFacts:
    """Read, check and store the data that ``words`` describe, once: what is stored already is used again.

    Args:
        words: the ``data`` section of a job.
        context: tokens of a sample where ``words.seq_len`` is null.
        cache: folder that keeps prepared data; made where missing.

    Raises:
        ConfigError: the data is missing, malformed or too small, or cannot be stored.
    """
    option = importlib.import_module(f"dml_runner.data.{words.name}")
    facts: DataFacts = option.prepare(words, words.seq_len or context, cache)
    return facts


def open_data(facts: DataFacts) -> TokenData:
    """The prepared data, ready to give batches.

    Raises:
        ConfigError: the prepared data is gone.
    """
    from dml_runner.data.base import TokenData

    return TokenData(facts)
