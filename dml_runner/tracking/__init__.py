"""Where metrics go: the console, the run folder, and a service outside if the job names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dml_runner.schema import tracker as schema
from dml_runner.tracking import wandb
from dml_runner.tracking.base import Tracker, Trackers
from dml_runner.tracking.console import Console
from dml_runner.tracking.jsonl import Jsonl

__all__ = ["Console", "Jsonl", "Tracker", "Trackers", "build", "check"]


def check(words: schema.Tracker) -> None:
    """Refuse, before anything starts, a tracker that cannot work here.

    Raises:
        ConfigError: its package is not installed.
    """
    if isinstance(words, schema.Wandb):
        wandb.check()


def build(
    words: schema.Tracker, folder: Path, *, name: str, run_id: str, config: Mapping[str, Any], say: Callable[[str], None]
) -> Tracker | None:
    """The outside tracker a job names, or None where the run folder is all.

    Args:
        words: the job's ``tracker`` section.
        folder: where the tracker keeps local files (the run folder's tracker/).
        name: of the run, for people.
        run_id: the same each time the run is continued; letters, digits, ``._-``.
        config: the job's words; values from the environment as references.
        say: shows a line to a person; called from any thread.
    """
    if isinstance(words, schema.Wandb):
        return wandb.Wandb(words, folder, wandb.Identity(run_id, name, config), say)
    return None
