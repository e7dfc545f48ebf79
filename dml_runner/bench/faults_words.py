"""The words of ``dml bench faults``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.words import read_count, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean

KEYS = ("only", "tries", "seed", "resume", "outputs", "data.path", "format")


@dataclass(frozen=True)
class FaultWords:
    """What ``dml bench faults`` is asked.

    Attributes:
        only: experiments to run, in this order.
        tries: draws of each experiment that is repeated.
        seed: of the draws: which rank, which step.
        resume: folder of an earlier measurement whose draws count.
        outputs: folder under which a new measurement is kept.
        data: text for the job whose asynchronous saves are timed; None: text that ships with Python.
        form: ``table`` or ``json``.
    """

    only: tuple[str, ...]
    tries: int = 20
    seed: int = 1
    resume: Path | None = None
    outputs: Path = Path("outputs")
    data: Path | None = None
    form: Literal["table", "json"] = "table"


def fault_words(words: Sequence[str], known: Sequence[str]) -> FaultWords:
    """Read the words after ``dml bench faults``; ``known`` are the experiments.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    only = tuple(name for name in given.get("only", ",".join(known)).split(",") if name)
    for name in only:
        if name not in known:
            hint = did_you_mean(name, known)
            problems.append(Problem("only", "no such experiment", got=repr(name), allowed=", ".join(known), hint=hint))
    form = given.get("format", "table")
    if form not in ("table", "json"):
        problems.append(Problem("format", "no such form", got=repr(form), allowed="table, json"))
    resume, data = _existing("resume", given, problems), _existing("data.path", given, problems)
    tries, seed = read_count("tries", given, 20, 1, problems), read_count("seed", given, 1, 1, problems)
    if problems:
        raise ConfigError(*problems)
    return FaultWords(only, tries, seed, resume, Path(given.get("outputs", "outputs")), data, "json" if form == "json" else "table")


def _existing(key: str, given: dict[str, str], problems: list[Problem]) -> Path | None:
    if key not in given:
        return None
    path = Path(given[key]).absolute()
    if not path.exists():
        problems.append(Problem(key, "nothing is there", got=given[key]))
    return path
