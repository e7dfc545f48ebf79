"""The words of ``dml bench comm`` and of ``dml bench links``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from dml_runner.bench.network import MOST_HOSTS
from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_form, read_keys
from dml_runner.comm.laws import COLLECTIVES
from dml_runner.errors import ConfigError, Problem, did_you_mean

COMM_KEYS = ("ranks", "sizes", "collectives", "algorithms", "node", "rounds", "format", "to")
LINK_KEYS = ("hosts", "mbit", "delay_ms", "mb", "collectives", "algorithms", "node", "rounds", "format", "to")
JOB_KEYS = ("hosts", "mbit", "delay_ms", "lost", "format", "to")
SIZES = "64k,1m,8m"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
Form = Literal["table", "json"]
Name = TypeVar("Name", bound=str)
Algorithm = Literal["backend", "ring", "tree", "hierarchical"]
ALGORITHMS: tuple[Algorithm, ...] = ("backend", "ring", "tree", "hierarchical")


@dataclass(frozen=True)
class Measured:
    """What both benches are asked.

    Attributes:
        collectives: what is measured.
        algorithms: and how it is done; pairs that do not exist are left out.
        node: ranks a node of the hierarchical algorithm.
        rounds: times each is measured, in turn.
        form: ``table`` or ``json``.
        to: folder for the JSON and the plot, or a page of Markdown for the table, beside which the plot goes; None: none is written.
    """

    collectives: tuple[str, ...] = COLLECTIVES
    algorithms: tuple[Algorithm, ...] = ALGORITHMS
    node: int = 2
    rounds: int = 7
    form: Form = "table"
    to: Path | None = None


@dataclass(frozen=True)
class CommWords:
    """What ``dml bench comm`` is asked.

    Attributes:
        ranks: processes started; None: two, or the world that a launcher gave.
        sizes: bytes of the whole tensor.
        measured: the rest.
    """

    ranks: int | None
    sizes: tuple[int, ...]
    measured: Measured


@dataclass(frozen=True)
class LinkWords:
    """What ``dml bench links`` is asked.

    Attributes:
        hosts: how many.
        mbit: rate of each link in each direction, 10^6 bits a second.
        delay_ms: milliseconds that each packet takes from host to host.
        size: bytes of the whole tensor.
        measured: the rest.
    """

    hosts: int
    mbit: int
    delay_ms: int
    size: int
    measured: Measured


@dataclass(frozen=True)
class JobWords:
    """What ``dml bench links ... -- VERB ...`` is asked.

    Attributes:
        hosts: how many, a rank each.
        mbit: rate of each link in each direction, 10^6 bits a second.
        delay_ms: milliseconds that each packet takes from host to host.
        lost: what follows when a rank fails: ``end`` the others, as torchrun does, or let them ``go_on``.
        form: of the bytes at the end: ``table`` or ``json``.
        to: folder for the bytes as JSON, and for what the other ranks print; None: neither is kept.
        command: the words of the job.
    """

    hosts: int
    mbit: int
    delay_ms: int
    lost: Literal["end", "go_on"]
    form: Form
    to: Path | None
    command: tuple[str, ...]


def comm_words(words: Sequence[str]) -> CommWords:
    """Read the words after ``dml bench comm``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, COMM_KEYS, problems)
    ranks = read_count("ranks", given, 2, 2, problems) if "ranks" in given else None
    sizes = tuple(_size(each, problems) for each in given.get("sizes", SIZES).split(",") if each)
    asked = CommWords(ranks, sizes, _measured("comm", given, COLLECTIVES, problems))
    if problems:
        raise ConfigError(*problems)
    return asked


def link_words(words: Sequence[str]) -> LinkWords:
    """Read the words after ``dml bench links``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, LINK_KEYS, problems)
    hosts, mbit, delay_ms = _network(given, problems)
    size = read_count("mb", given, 8, 1, problems) * 10**6
    asked = LinkWords(hosts, mbit, delay_ms, size, _measured("links_delay" if delay_ms else "links", given, ("all_reduce",), problems))
    if problems:
        raise ConfigError(*problems)
    return asked


def job_words(words: Sequence[str]) -> JobWords:
    """Read the words after ``dml bench links`` where ``--`` and a job follow.

    Raises:
        ConfigError: everything that is wrong with them, the job's own words excepted.
    """
    problems: list[Problem] = []
    at = list(words).index("--")
    command = tuple(words[at + 1 :])
    given = read_keys(words[:at], JOB_KEYS, problems)
    hosts, mbit, delay_ms = _network(given, problems)
    lost = given.get("lost", "end")
    if lost not in ("end", "go_on"):
        problems.append(Problem("lost", "not what may follow a rank's failure", got=repr(lost), allowed="end, go_on"))
    if not command:
        problems.append(Problem("--", "says what to run", got="nothing", hint="dml bench links hosts=4 -- train FILE.yaml"))
    form, to = read_form(given, problems), _folder(given, problems)
    if problems:
        raise ConfigError(*problems)
    return JobWords(hosts, mbit, delay_ms, "go_on" if lost == "go_on" else "end", form, to, command)


def _network(given: dict[str, str], problems: list[Problem]) -> tuple[int, int, int]:
    hosts = read_count("hosts", given, 4, 2, problems)
    if hosts > MOST_HOSTS:
        problems.append(Problem("hosts", "too many for one switch", got=str(hosts), allowed=f"2 to {MOST_HOSTS}"))
    return hosts, read_count("mbit", given, 400, 1, problems), read_count("delay_ms", given, 0, 0, problems)


def _measured(name: str, given: dict[str, str], collectives: Sequence[str], problems: list[Problem]) -> Measured:
    return Measured(
        collectives=_chosen("collectives", given, COLLECTIVES, collectives, problems),
        algorithms=_chosen("algorithms", given, ALGORITHMS, ALGORITHMS, problems),
        node=read_count("node", given, 2, 1, problems),
        rounds=read_count("rounds", given, 7, 1, problems),
        form=read_form(given, problems),
        to=_drawn(name, given, problems),
    )


def _chosen(key: str, given: dict[str, str], known: Sequence[Name], default: Sequence[Name], problems: list[Problem]) -> tuple[Name, ...]:
    if key not in given:
        return tuple(default)
    asked = [name for name in given[key].split(",") if name]
    for name in asked:
        if name not in known:
            hint = did_you_mean(name, known)
            problems.append(Problem(key, f"no such {key[:-1]}", got=repr(name), allowed=", ".join(known), hint=hint))
    if not asked:
        problems.append(Problem(key, "nothing to measure", allowed=", ".join(known)))
    return tuple(name for name in known if name in asked)


def _size(text: str, problems: list[Problem]) -> int:
    number, unit = (text[:-1], text[-1]) if text[-1] in UNITS else (text, "")
    if not number.isdecimal() or int(number) == 0:
        problems.append(Problem("sizes", "not a number of bytes", got=repr(text), allowed="1 or more, as in 4096, 64k, 8m"))
        return 1
    return int(number) * UNITS[unit]


def _folder(given: dict[str, str], problems: list[Problem]) -> Path | None:
    to = given.get("to")
    if to is None:
        return None
    if to == "" or Path(to).is_file():
        problems.append(Problem("to", "not a folder", got=repr(to)))
    return Path(to)


def _drawn(name: str, given: dict[str, str], problems: list[Problem]) -> Path | None:
    if "to" in given and importlib.util.find_spec("matplotlib") is None:
        problems.append(Problem("to", "a plot needs matplotlib", hint="pip install 'dml_runner[plots]', or leave to= out"))
    return read_page(given, name, problems) if given.get("to", "").endswith(".md") else _folder(given, problems)
