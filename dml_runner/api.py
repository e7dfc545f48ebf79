"""The runner from Python: plan a job, train it, load what was trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from dml_runner.planning.plan import Plan
    from dml_runner.summary import Summary


def plan(words: Sequence[str]) -> Plan:
    """What the job of ``words`` would be and cost; nothing is started and no run folder made.

    Raises:
        ConfigError: the words or the data are wrong.
        PlanError: the job cannot be laid out (one that only does not fit has ``fits=False``).
    """
    from dml_runner.launch.prepare import plan_job
    from dml_runner.launch.request import read_words

    return plan_job(read_words(words).run)[0]


def train(words: Sequence[str]) -> Summary:
    """Train the job of ``words``, and say how it ended; one rank trains in this process, more are started beside it.

    Raises:
        DmlError: the job was refused or failed.
    """
    from dml_runner.errors import ConfigError, Problem
    from dml_runner.launch import command
    from dml_runner.summary import read_summary

    _, folder = command.train(words, time.time())
    summary = read_summary(folder)
    if summary is None:
        raise ConfigError(Problem("launcher.print", "shows commands and trains nothing", got="true", hint="leave it out here"))
    return summary


def load(run: str | Path, plugins: Sequence[str] = ()) -> nn.Module:
    """The model of a run folder's newest sound step, or of the very step folder named, on the CPU, ready to evaluate.

    Args:
        run: the folder.
        plugins: Python files that the run's options come from, as typed after ``plugins=`` when it was trained.

    Raises:
        ConfigError: nothing was saved there, it is damaged, or a file that it needs is not among ``plugins``.
    """
    from dml_runner.plugins import load as load_plugins

    load_plugins(plugins)
    from dml_runner.launch.trained import load_model

    return load_model(Path(run))
