"""The words of a measurement: ``steps=1000 with=accelerate,lightning``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.errors import ConfigError, Problem, did_you_mean

FRAMEWORKS = ("accelerate", "lightning")
FORMATS: tuple[Literal["table", "json"], ...] = ("table", "json")


@dataclass(frozen=True)
class LoopWords:
    """What ``dml bench loop`` is asked.

    Attributes:
        steps: updates that are timed in each turn of each loop.
        pairs: turns of each loop.
        frameworks: other loops that take turns too.
        form: ``table`` or ``json``.
    """

    steps: int = 500
    pairs: int = 20
    frameworks: tuple[str, ...] = FRAMEWORKS
    form: Literal["table", "json"] = "table"


KEYS = ("steps", "pairs", "with", "format")


def loop_words(words: Sequence[str]) -> LoopWords:
    """Read the words after ``dml bench loop``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    asked = LoopWords(
        steps=read_count("steps", given, LoopWords.steps, 2, problems),
        pairs=read_count("pairs", given, LoopWords.pairs, 2, problems),
        frameworks=_frameworks(given, problems),
        form=read_form(given, problems),
    )
    if problems:
        raise ConfigError(*problems)
    return asked


def read_keys(words: Sequence[str], keys: Sequence[str], problems: list[Problem]) -> dict[str, str]:
    """Key -> value of words ``key=value``; a key that is none of ``keys`` is a problem."""
    given: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in keys:
            problems.append(Problem(key, "no such word", allowed=", ".join(f"{each}=" for each in keys), hint=did_you_mean(key, keys)))
        given[key] = value
    return given


def read_count(key: str, given: dict[str, str], default: int, least: int, problems: list[Problem]) -> int:
    """The whole number given under ``key``; one below ``least`` is a problem."""
    value = given.get(key, str(default))
    if not value.isdecimal() or int(value) < least:
        problems.append(Problem(key, "not a count", got=repr(value), allowed=f"{least} or more"))
        return default
    return int(value)


def _frameworks(given: dict[str, str], problems: list[Problem]) -> tuple[str, ...]:
    if "with" not in given:
        return FRAMEWORKS
    asked = tuple(name for name in given["with"].split(",") if name)
    for name in asked:
        if name not in FRAMEWORKS:
            problems.append(
                Problem("with", "no such loop", got=repr(name), allowed=", ".join(FRAMEWORKS), hint=did_you_mean(name, FRAMEWORKS))
            )
    return asked


def read_form(given: dict[str, str], problems: list[Problem]) -> Literal["table", "json"]:
    """How the result is told; another word than ``FORMATS`` is a problem."""
    value = given.get("format", "table")
    for form in FORMATS:
        if value == form:
            return form
    problems.append(Problem("format", "no such form", got=repr(value), allowed=", ".join(FORMATS)))
    return "table"


def read_file(key: str, given: dict[str, str], default: str | None, problems: list[Problem]) -> Path:
    """The file or folder named under ``key``, as an absolute path; one that is needed or not there is a problem."""
    value = given.get(key, default)
    if value is None:
        problems.append(Problem(key, "is needed", got="nothing", allowed=f"{key}=FILE"))
        return Path()
    path = Path(value).absolute()
    if not path.exists():
        problems.append(Problem(key, "nothing is there", got=value))
    return path
