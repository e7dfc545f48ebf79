"""The words of ``dml bench bubble``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dml_runner.bench.page import read_page
from dml_runner.bench.server_words import read_counts
from dml_runner.bench.words import read_count, read_form, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean
from dml_runner.schema.strategy import Schedule

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
KEYS = ("ranks", "microbatches", "schedules", "ms", "rounds", "to", "format")


@dataclass(frozen=True)
class BubbleWords:
    """What ``dml bench bubble`` is asked.

    Attributes:
        ranks: numbers of stages, in turn.
        microbatches: numbers of micro-batches, in turn.
        schedules: those that are run.
        seconds: that a rank's forward of a micro-batch takes; its backward takes twice as long.
        rounds: steps that count.
        page: Markdown file that the table is written into as well, and the picture beside it.
        form: ``table`` or ``json``.
    """

    ranks: tuple[int, ...]
    microbatches: tuple[int, ...]
    schedules: tuple[Schedule, ...]
    seconds: float
    rounds: int
    page: Path | None
    form: Literal["table", "json"]


def bubble_words(words: Sequence[str]) -> BubbleWords:
    """Read the words after ``dml bench bubble``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    asked = BubbleWords(
        ranks=read_counts("ranks", given, (4, 2), problems, least=2),
        microbatches=read_counts("microbatches", given, (8, 16), problems),
        schedules=_schedules(given, problems),
        seconds=read_count("ms", given, 20, 1, problems) / 1e3,
        rounds=read_count("rounds", given, 3, 2, problems),
        page=read_page(given, "bubble", problems),
        form=read_form(given, problems),
    )
    if problems:
        raise ConfigError(*problems)
    return asked


def _schedules(given: dict[str, str], problems: list[Problem]) -> tuple[Schedule, ...]:
    if "schedules" not in given:
        return SCHEDULES
    asked = given["schedules"].split(",")
    for name in asked:
        if name not in SCHEDULES:
            hint = did_you_mean(name, SCHEDULES)
            problems.append(Problem("schedules", "no such schedule", got=repr(name), allowed=", ".join(SCHEDULES), hint=hint))
    return tuple(name for name in SCHEDULES if name in asked)
