"""What evaluations tell beside the loss. ``train.metrics: [f1]`` means metrics/f1.py; torchmetrics counts and adds up over the ranks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner import plugins
from dml_runner.errors import Problem, did_you_mean, raise_all
from dml_runner.plugins.loading import METRICS
from dml_runner.run import Run

if TYPE_CHECKING:
    from torchmetrics import Metric

USUAL = ("accuracy",)
"""What ``train.metrics: null`` means."""
OURS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))
"""The metrics that stand in this folder."""


def names(run: Run) -> tuple[str, ...]:
    """The metrics of a job, each once, in the order typed."""
    return tuple(dict.fromkeys(USUAL if run.train.metrics is None else run.train.metrics))


def known() -> list[str]:
    """Every metric there is: ours, and those of the plugins that are loaded."""
    return sorted({*OURS, *plugins.metrics()})


def check(run: Run) -> None:
    """Refuse metrics that do not exist, and a watched one that is not evaluated. Imports nothing that is large.

    Raises:
        ConfigError: one line for each, or the installed package that has one fails.
    """
    raise_all(_problems(run))


def build(name: str, classes: int) -> Metric:
    """A new metric, on the CPU; it takes (predicted, targets), two int64 tensors of one dimension, and computes one number.

    Args:
        name: one of ``known()``, or of an installed package.
        classes: labels or token ids there are; a prediction may lie above.
    """
    if name not in OURS and plugins.find(METRICS, name):
        found: Metric = plugins.metrics()[name](classes)
        return found
    option = importlib.import_module(f"dml_runner.metrics.{name}")
    metric: Metric = option.build(classes)
    return metric


def _problems(run: Run) -> Iterator[Problem]:
    for name in names(run):
        if name not in OURS and not plugins.find(METRICS, name):
            there = known()
            yield Problem("train.metrics", "no such metric", got=repr(name), allowed=", ".join(there), hint=did_you_mean(name, there))
    for key, watched in (("train.stop.metric", run.train.stop.metric), ("checkpoint.best", run.checkpoint.best)):
        name = (watched or "eval_loss").removeprefix("eval_")
        if name != "loss" and name not in names(run):
            yield Problem(key, "is not evaluated", got=watched, allowed="eval_loss", hint=f"or add {name} to train.metrics")
