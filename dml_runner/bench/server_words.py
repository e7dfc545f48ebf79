"""The words of ``dml bench server`` and of ``dml bench loopback``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.network import MOST_HOSTS
from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_form, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean

Form = Literal["table", "json"]
Placement = Literal["dedicated", "colocated"]
PLACEMENTS: tuple[Placement, ...] = ("dedicated", "colocated")
SERVER_KEYS = ("workers", "servers", "placement", "mbit", "mb", "buckets", "rounds", "to", "format")
LOOPBACK_KEYS = ("workers", "buckets", "mb", "rounds", "to", "format")


@dataclass(frozen=True)
class ServerWords:
    """What ``dml bench server`` is asked.

    Attributes:
        workers: hosts that push and pull.
        servers: numbers of servers, in turn.
        placements: on hosts of their own, or on the first workers' hosts.
        mbit: rate of each link in each direction, 10^6 bits a second.
        size: bytes of the weights.
        buckets: they travel in so many.
        rounds: steps that count.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    workers: int
    servers: tuple[int, ...]
    placements: tuple[Placement, ...]
    mbit: int
    size: int
    buckets: int
    rounds: int
    page: Path | None
    form: Form


@dataclass(frozen=True)
class LoopbackWords:
    """What ``dml bench loopback`` is asked.

    Attributes:
        workers: numbers of workers, in turn.
        buckets: numbers of buckets, in turn.
        size: bytes of the weights.
        rounds: steps that count.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    workers: tuple[int, ...]
    buckets: tuple[int, ...]
    size: int
    rounds: int
    page: Path | None
    form: Form


def server_words(words: Sequence[str]) -> ServerWords:
    """Read the words after ``dml bench server``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, SERVER_KEYS, problems)
    asked = ServerWords(
        workers=read_count("workers", given, 4, 1, problems),
        servers=read_counts("servers", given, (1, 2, 4), problems),
        placements=_placements(given, problems),
        mbit=read_count("mbit", given, 200, 1, problems),
        size=read_count("mb", given, 32, 1, problems) * 10**6,
        buckets=read_count("buckets", given, 128, 1, problems),
        rounds=read_count("rounds", given, 7, 2, problems),
        page=read_page(given, "server", problems),
        form=read_form(given, problems),
    )
    most = max(asked.servers, default=1)
    if asked.workers + most > MOST_HOSTS:
        problems.append(Problem("servers", "too many hosts for one switch", got=str(most), allowed=f"{MOST_HOSTS} hosts in all"))
    if "colocated" in asked.placements and most > asked.workers:
        problems.append(Problem("servers", "more than workers to live with", got=str(most), allowed=f"1 to {asked.workers}"))
    if problems:
        raise ConfigError(*problems)
    return asked


def loopback_words(words: Sequence[str]) -> LoopbackWords:
    """Read the words after ``dml bench loopback``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, LOOPBACK_KEYS, problems)
    asked = LoopbackWords(
        workers=read_counts("workers", given, (1, 2), problems),
        buckets=read_counts("buckets", given, (1, 4, 16), problems),
        size=read_count("mb", given, 64, 1, problems) * 10**6,
        rounds=read_count("rounds", given, 5, 2, problems),
        page=read_page(given, "loopback", problems),
        form=read_form(given, problems),
    )
    if problems:
        raise ConfigError(*problems)
    return asked


def read_counts(key: str, given: dict[str, str], default: tuple[int, ...], problems: list[Problem]) -> tuple[int, ...]:
    """The whole numbers given under ``key``, parted by commas; each must be 1 or more."""
    if key not in given:
        return default
    found = given[key].split(",")
    if not all(each.isdecimal() and int(each) > 0 for each in found):
        problems.append(Problem(key, "not counts", got=repr(given[key]), allowed="1 or more each, as in 1,2,4"))
        return default
    return tuple(int(each) for each in found)


def _placements(given: dict[str, str], problems: list[Problem]) -> tuple[Placement, ...]:
    if "placement" not in given:
        return PLACEMENTS
    asked = given["placement"].split(",")
    for name in asked:
        if name not in PLACEMENTS:
            hint = did_you_mean(name, PLACEMENTS)
            problems.append(Problem("placement", "no such placement", got=repr(name), allowed=", ".join(PLACEMENTS), hint=hint))
    return tuple(name for name in PLACEMENTS if name in asked)
