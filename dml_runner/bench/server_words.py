"""The words of ``dml bench server`` and of ``dml bench loopback``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.network import JUMBO_MTU, MOST_HOSTS
from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_form, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean

Form = Literal["table", "json"]
Placement = Literal["dedicated", "colocated", "helpers"]
PLACEMENTS: tuple[Placement, ...] = ("dedicated", "colocated", "helpers")
SERVER_KEYS = ("workers", "servers", "helpers", "placement", "mbit", "mtu", "mb", "buckets", "rounds", "to", "format")
LEAST_MTU = 576
LOOPBACK_KEYS = ("workers", "buckets", "mb", "rounds", "to", "format")


@dataclass(frozen=True)
class ServerWords:
    """What ``dml bench server`` is asked.

    Attributes:
        workers: hosts that push and pull.
        servers: numbers of servers, in turn.
        helpers: numbers of helpers, in turn.
        placements: servers on hosts of their own, or on the first workers' hosts; helpers on hosts of their own.
        mbit: rate of each link in each direction, 10^6 bits a second.
        mtu: bytes of the largest packet.
        size: bytes of the weights.
        buckets: they travel in so many.
        rounds: steps that count.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    workers: int
    servers: tuple[int, ...]
    helpers: tuple[int, ...]
    placements: tuple[Placement, ...]
    mbit: int
    mtu: int
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
        helpers=read_counts("helpers", given, (0, 1, 2, 4), problems, least=0),
        placements=_placements(given, problems),
        mbit=read_count("mbit", given, 200, 1, problems),
        mtu=read_count("mtu", given, JUMBO_MTU, LEAST_MTU, problems),
        size=read_count("mb", given, 32, 1, problems) * 10**6,
        buckets=read_count("buckets", given, 128, 1, problems),
        rounds=read_count("rounds", given, 7, 2, problems),
        page=read_page(given, "server", problems),
        form=read_form(given, problems),
    )
    most = max(asked.servers)
    for key, count in (("servers", most), ("helpers", max(asked.helpers))):
        if asked.workers + count > MOST_HOSTS:
            problems.append(Problem(key, "too many hosts for one switch", got=str(count), allowed=f"{MOST_HOSTS} hosts in all"))
    if "helpers" in asked.placements and asked.workers < 2:
        problems.append(Problem("placement", "helpers sum for two workers or more", allowed="placement=dedicated,colocated"))
    if asked.mtu > JUMBO_MTU:
        problems.append(Problem("mtu", "larger than a link takes", got=str(asked.mtu), allowed=f"{LEAST_MTU} to {JUMBO_MTU}"))
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


def read_counts(key: str, given: dict[str, str], default: tuple[int, ...], problems: list[Problem], least: int = 1) -> tuple[int, ...]:
    """The whole numbers given under ``key``, parted by commas; each must be ``least`` or more."""
    if key not in given:
        return default
    found = given[key].split(",")
    if not all(each.isdecimal() and int(each) >= least for each in found):
        problems.append(Problem(key, "not counts", got=repr(given[key]), allowed=f"{least} or more each, as in 1,2,4"))
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
