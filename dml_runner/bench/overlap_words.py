"""The words of ``dml bench overlap`` and of ``dml bench ddp``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.comm_words import ALGORITHMS, Algorithm
from dml_runner.bench.network import MOST_HOSTS
from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_form, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean

Form = Literal["table", "json"]
OVERLAP_KEYS = ("hosts", "mbit", "mb", "layers", "algorithms", "rounds", "to", "format")
DDP_KEYS = ("hosts", "mbit", "steps", "pairs", "to", "format")


@dataclass(frozen=True)
class OverlapWords:
    """What ``dml bench overlap`` is asked.

    Attributes:
        hosts: a rank each.
        mbit: rate of each link in each direction, 10^6 bits a second.
        size: bytes of the gradient.
        layers: it is computed in so many pieces, each a bucket.
        algorithms: how ranks sum.
        rounds: steps of each kind that count, in turn.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    hosts: int
    mbit: int
    size: int
    layers: int
    algorithms: tuple[Algorithm, ...]
    rounds: int
    page: Path | None
    form: Form


@dataclass(frozen=True)
class DdpWords:
    """What ``dml bench ddp`` is asked.

    Attributes:
        hosts: a rank each.
        mbit: rate of each link in each direction, 10^6 bits a second.
        steps: updates timed in each turn of each side.
        pairs: turns of each side.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    hosts: int
    mbit: int
    steps: int
    pairs: int
    page: Path | None
    form: Form


def overlap_words(words: Sequence[str]) -> OverlapWords:
    """Read the words after ``dml bench overlap``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, OVERLAP_KEYS, problems)
    asked = OverlapWords(
        hosts=_hosts(given, problems),
        mbit=read_count("mbit", given, 400, 1, problems),
        size=read_count("mb", given, 8, 1, problems) * 10**6,
        layers=read_count("layers", given, 16, 2, problems),
        algorithms=_algorithms(given, problems),
        rounds=read_count("rounds", given, 7, 2, problems),
        page=read_page(given, "overlap", problems),
        form=read_form(given, problems),
    )
    if problems:
        raise ConfigError(*problems)
    return asked


def ddp_words(words: Sequence[str]) -> DdpWords:
    """Read the words after ``dml bench ddp``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, DDP_KEYS, problems)
    asked = DdpWords(
        hosts=_hosts(given, problems),
        mbit=read_count("mbit", given, 400, 1, problems),
        steps=read_count("steps", given, 20, 2, problems),
        pairs=read_count("pairs", given, 9, 2, problems),
        page=read_page(given, "ddp", problems),
        form=read_form(given, problems),
    )
    if problems:
        raise ConfigError(*problems)
    return asked


def _hosts(given: dict[str, str], problems: list[Problem]) -> int:
    hosts = read_count("hosts", given, 4, 2, problems)
    if hosts > MOST_HOSTS:
        problems.append(Problem("hosts", "too many for one switch", got=str(hosts), allowed=f"2 to {MOST_HOSTS}"))
    return hosts


def _algorithms(given: dict[str, str], problems: list[Problem]) -> tuple[Algorithm, ...]:
    if "algorithms" not in given:
        return ("backend", "ring")
    asked = given["algorithms"].split(",")
    for name in asked:
        if name not in ALGORITHMS:
            hint = did_you_mean(name, ALGORITHMS)
            problems.append(Problem("algorithms", "no such algorithm", got=repr(name), allowed=", ".join(ALGORITHMS), hint=hint))
    return tuple(name for name in ALGORITHMS if name in asked)
