"""The words of ``dml bench straggler``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_form, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean

KEYS = ("seconds", "seeds", "who", "chance", "least_ms", "most_ms", "staleness", "lr", "momentum", "batch", "every", "to", "format")
WORKERS = 4
MODES = ("bsp", "ssp", "asp")
WHO: tuple[Literal["one", "any"], ...] = ("one", "any")


@dataclass(frozen=True)
class StragglerWords:
    """What ``dml bench straggler`` is asked.

    Attributes:
        seconds: of training.
        seeds: jobs of each kind.
        who: ``one`` worker is slow now and then, or ``any``.
        chance: how often.
        least: milliseconds it sleeps longer at least.
        most: and at most.
        staleness: of ssp.
        rate: learning rate.
        momentum: of sgd; the servers apply it at each update, so under ssp and asp at each push.
        batch: samples of a step, of all workers together.
        every: steps between two evaluations, at which all workers meet.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    seconds: int
    seeds: int
    who: Literal["one", "any"]
    chance: float
    least: int
    most: int
    staleness: int
    rate: float
    momentum: float
    batch: int
    every: int
    page: Path | None
    form: Literal["table", "json"]

    @property
    def mark(self) -> str:
        """The name of its table in a page."""
        return table_mark(self.who, self.momentum)


def straggler_words(words: Sequence[str]) -> StragglerWords:
    """Read the words after ``dml bench straggler``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    who = _who(given, problems)
    if "to" in given and importlib.util.find_spec("matplotlib") is None:
        problems.append(Problem("to", "a plot needs matplotlib", hint="pip install 'dml_runner[plots]', or leave to= out"))
    momentum = _number("momentum", given, 0.0, 0.999, problems)
    asked = StragglerWords(
        seconds=read_count("seconds", given, 12, 1, problems),
        seeds=read_count("seeds", given, 5, 1, problems),
        who=who,
        chance=_number("chance", given, 0.3, 1.0, problems),
        least=read_count("least_ms", given, 20, 0, problems),
        most=read_count("most_ms", given, 100, 0, problems),
        staleness=read_count("staleness", given, 3, 0, problems),
        rate=_number("lr", given, 0.5, 1000.0, problems),
        momentum=momentum,
        batch=read_count("batch", given, 32, WORKERS, problems),
        every=read_count("every", given, 25, 1, problems),
        page=read_page(given, table_mark(who, momentum), problems),
        form=read_form(given, problems),
    )
    if asked.batch % WORKERS:
        problems.append(Problem("batch", f"does not divide among {WORKERS} workers", got=str(asked.batch)))
    if asked.most < asked.least:
        problems.append(Problem("most_ms", "less than least_ms", got=str(asked.most), allowed=f"{asked.least} or more"))
    if problems:
        raise ConfigError(*problems)
    return asked


def table_mark(who: str, momentum: float) -> str:
    """straggler_one, straggler_any; with momentum, straggler_one_momentum, straggler_any_momentum."""
    return f"straggler_{who}_momentum" if momentum else f"straggler_{who}"


def _who(given: dict[str, str], problems: list[Problem]) -> Literal["one", "any"]:
    value = given.get("who", "one")
    for who in WHO:
        if value == who:
            return who
    problems.append(Problem("who", "nobody of that name", got=repr(value), allowed=", ".join(WHO), hint=did_you_mean(value, WHO)))
    return "one"


def _number(key: str, given: dict[str, str], default: float, most: float, problems: list[Problem]) -> float:
    """A number above 0, or 0 where that is the default."""
    try:
        value = float(given.get(key, default))
    except ValueError:
        value = -1.0
    if not (0 < value <= most or value == default == 0):
        above = "above 0" if default else "0 or more"
        problems.append(Problem(key, "not a number of that range", got=repr(given[key]), allowed=f"{above}, {most:g} at most"))
        return default
    return value
