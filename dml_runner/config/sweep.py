"""The words of a sweep to the words of its trials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from dml_runner.config import folders
from dml_runner.config import words as words_
from dml_runner.errors import Problem, raise_all

MAX_TRIALS = 10_000


def trials(words: Sequence[str]) -> list[list[str]]:
    """Every combination of ``key=a,b``, ``key=range(1,4)`` and ``group=glob(*)``, the last word varying fastest.

    Words without a sweep stay as they are; the job file stands first in every trial.

    Raises:
        ConfigError: a word cannot be read, has no list of values (``interval``), or there are over 10,000 trials.
    """
    problems: list[Problem] = []
    words_.load_plugins(words)
    path, others = words_.split(words, problems)
    choices: list[list[str]] = []
    for override in words_.parse(others, problems):
        if not override.is_sweep_override():
            choices.append([override.input_line])
        elif override.is_interval_sweep():
            what = "interval has no list of values"
            problems.append(Problem(override.key_or_group, what, got=override.input_line, allowed="a,b or range(...)"))
        else:
            values = _values(override, path)
            if not values:
                problems.append(Problem(override.key_or_group, "no value to try", got=override.input_line))
            choices.append([f"{override.get_key_element()}={value}" for value in values])
    count = math.prod(len(each) for each in choices)
    if count > MAX_TRIALS:
        problems.append(Problem("-m", "too many trials", got=f"{count:,} or more", allowed=f"{MAX_TRIALS:,}"))
    raise_all(problems)
    first = [str(path)] if path is not None else []
    return [[*first, *each] for each in itertools.product(*choices)]


def _values(override: Any, path: Any) -> list[str]:
    from hydra.core.override_parser.types import Glob

    swept = override.value()
    if isinstance(swept, Glob):
        return list(swept.filter(list(folders.options(override.key_or_group, path))))
    return list(itertools.islice(override.sweep_string_iterator(), MAX_TRIALS + 1))
