"""Which step a run continues from: the one ``latest`` names, else the newest that verifies."""

from __future__ import annotations

import os
from pathlib import Path

from dml_runner.checkpoint.names import LATEST, step_name, step_of
from dml_runner.checkpoint.read import Committed, open_step
from dml_runner.checkpoint.tidy import step_folders
from dml_runner.checkpoint.verify import KEY
from dml_runner.errors import ConfigError, Problem


def newest(folder: Path) -> tuple[Committed | None, list[str]]:
    """The step to continue from in a ``checkpoints`` folder, and a line for each thing that was passed over.

    ``latest`` is followed; if it or the step it names is not sound, the newest step that verifies is taken. None: no
    step was ever committed.

    Raises:
        ConfigError: there are steps, and none verifies; one line each.
    """
    found = step_folders(folder)
    first, notices = _latest(folder, found)
    order = sorted(found, reverse=True)
    if first is not None:
        order.remove(first)
        order.insert(0, first)
    refused: list[Problem] = []
    for step in order:
        try:
            committed = open_step(found[step])
        except ConfigError as error:
            refused += error.problems
            continue
        passed = [*notices, *(problem.what for problem in refused)]
        return committed, [f"{line}; using step {step}" for line in passed]
    if refused:
        raise ConfigError(*(Problem(KEY, p.what, p.got, p.allowed, f"no step in {folder} is sound") for p in refused))
    return None, [f"{line}; there is no step to use" for line in notices]


def _latest(folder: Path, found: dict[int, Path]) -> tuple[int | None, list[str]]:
    """The step that ``latest`` names, and what is wrong with the link."""
    link = folder / LATEST
    if not os.path.lexists(link):
        return None, ["latest is missing"] if found else []
    if not link.is_symlink():
        return None, ["latest is not a link"]
    target = os.readlink(link)
    step = step_of(target)
    if step is None:
        return None, [f"latest points outside the run's steps ({target!r})"]
    if step not in found:
        return None, [f"latest points to nothing ({step_name(step)})"]
    return step, []
