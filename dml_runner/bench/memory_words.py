"""The words of ``dml bench memory``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_file, read_form, read_keys
from dml_runner.errors import ConfigError, Problem

NAME = "memory"
KEYS = ("recipe", "rounds", "steps", "to", "format")
JOB = ("model=gpt", "model.layers=16", "data=synthetic", "data.seq_len=128", "model.context=128", "train.global_batch=8")
"""Trained where no recipe is named; it needs no file."""


@dataclass(frozen=True)
class MemoryWords:
    """What ``dml bench memory`` is asked.

    Attributes:
        job: the words of the job.
        rounds: turns of each way to recompute.
        steps: updates timed in each turn.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    job: tuple[str, ...]
    rounds: int
    steps: int
    page: Path | None
    form: Literal["table", "json"]


def memory_words(words: Sequence[str]) -> MemoryWords:
    """Read the words after ``dml bench memory``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    asked = MemoryWords(
        job=(str(read_file("recipe", given, None, problems)),) if "recipe" in given else JOB,
        rounds=read_count("rounds", given, 7, 2, problems),
        steps=read_count("steps", given, 2, 1, problems),
        page=read_page(given, NAME, problems),
        form=read_form(given, problems),
    )
    if problems:
        raise ConfigError(*problems)
    return asked
