"""What can go wrong, and the exit code each kind ends the command with.

DmlError
|-- ConfigError     2   the words, a file or the data are wrong
|-- PlanError       3   the job does not fit or cannot be laid out
|-- LaunchError     4   the ranks could not be started as asked
|-- RunFailed       5   a rank failed while the job ran
|   |-- Diverged    6   the loss or a gradient is not a number
|   `-- CameApart   5   ranks that must hold the same weights do not
|-- Interrupted   130   Ctrl-C
`-- Terminated    143   SIGTERM, after a clean save
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: prints as ``key: what; got X; allowed Y; hint``."""

    key: str
    what: str
    got: str | None = None
    allowed: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        parts = [self.what]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.allowed is not None:
            parts.append(f"allowed {self.allowed}")
        if self.hint is not None:
            parts.append(self.hint)
        line = "; ".join(parts)
        return f"{self.key}: {line}" if self.key else line


class DmlError(Exception):
    """An error the user can act on; printed as one line a problem, never as a traceback."""

    exit_code = 5

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem("", p) for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[DmlError], tuple[Problem, ...]]:
        return type(self), self.problems


class ConfigError(DmlError):
    """The words, a file or the data are wrong."""

    exit_code = 2


class PlanError(DmlError):
    """The job does not fit the hardware or cannot be laid out on it."""

    exit_code = 3


class LaunchError(DmlError):
    """The ranks could not be started as asked."""

    exit_code = 4


class RunFailed(DmlError):
    """A rank failed while the job ran."""

    exit_code = 5


class Diverged(RunFailed):
    """The loss or a gradient is not a finite number."""

    exit_code = 6


class CameApart(RunFailed):
    """Ranks that must hold the same weights do not; starting again would go on from weights nobody can vouch for."""


class Interrupted(DmlError):
    """The user pressed Ctrl-C."""

    exit_code = 130


class Terminated(DmlError):
    """SIGTERM arrived and the run was saved at a step border."""

    exit_code = 143


def raise_all(problems: Iterable[Problem], kind: type[DmlError] = ConfigError) -> None:
    """Raise one error that carries every problem, or return if there is none."""
    found = list(problems)
    if found:
        raise kind(*found)


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """A hint naming the known word nearest to ``word``, or None if none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else None
