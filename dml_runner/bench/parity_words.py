"""The words of ``dml bench parity``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.page import read_page
from dml_runner.bench.parity_cells import FAMILIES, LAYOUTS, RECOMPUTE
from dml_runner.bench.words import read_form, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean

KEYS = ("layouts", "families", "recompute", "to", "format")


@dataclass(frozen=True)
class ParityWords:
    """What ``dml bench parity`` is asked.

    Attributes:
        layouts: names out of ``LAYOUTS``.
        families: out of ``FAMILIES``.
        recompute: out of ``RECOMPUTE``.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    layouts: tuple[str, ...]
    families: tuple[str, ...]
    recompute: tuple[str, ...]
    page: Path | None
    form: Literal["table", "json"]


def parity_words(words: Sequence[str]) -> ParityWords:
    """Read the words after ``dml bench parity``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    asked = ParityWords(
        layouts=_names("layouts", given, LAYOUTS, problems),
        families=_names("families", given, FAMILIES, problems),
        recompute=_names("recompute", given, RECOMPUTE, problems),
        page=read_page(given, "parity", problems),
        form=read_form(given, problems),
    )
    if problems:
        raise ConfigError(*problems)
    return asked


def _names(key: str, given: dict[str, str], known: Iterable[str], problems: list[Problem]) -> tuple[str, ...]:
    names = list(known)
    asked = [name for name in given.get(key, ",".join(names)).split(",") if name]
    for name in asked:
        if name not in names:
            problems.append(Problem(key, "none of that name", got=repr(name), allowed=", ".join(names), hint=did_you_mean(name, names)))
    if not asked:
        problems.append(Problem(key, "names nothing", got=repr(given[key]), allowed=", ".join(names)))
    return tuple(name for name in names if name in asked)
