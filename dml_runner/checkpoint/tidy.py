"""What stands in a ``checkpoints`` folder, and taking away what is no longer needed: only names made here, never through a link."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dml_runner.checkpoint.names import (
    BEST,
    LATEST,
    MANIFEST,
    is_link,
    is_removed,
    removed_name,
    replaced_name,
    replaced_of,
    staging_generation,
    step_name,
    step_of,
)
from dml_runner.files import sync_folder


def steps(folder: Path) -> list[int]:
    """Committed steps in a ``checkpoints`` folder, ascending; their content is not verified."""
    return sorted(step_folders(folder))


def step_folders(folder: Path) -> dict[int, Path]:
    """Folder of every committed step; one that was being replaced when its run died counts under its own step."""
    found: dict[int, Path] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir(), reverse=True):
        step = step_of(replaced_of(path.name) or path.name)
        if step is not None and _is_folder(path) and os.path.lexists(path / MANIFEST):
            found.setdefault(step, path)
    return found


def reap(folder: Path, generation: int | None = None) -> None:
    """Take away what dead runs left half-done in a ``checkpoints`` folder; staging of ``generation`` stays.

    A step that was being replaced takes its name back if nothing else stands there.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        writer, replaced = staging_generation(path.name), replaced_of(path.name)
        if replaced is not None:
            _settle_replaced(path, folder / replaced)
        elif is_removed(path.name) or is_link(path.name) or (writer is not None and writer != generation):
            remove(path)


def prune(folder: Path, saved: int, keep: int) -> None:
    """After ``saved`` was committed: keep the newest ``keep`` steps up to it, those after it, the best and the latest."""
    older = [step for step in steps(folder) if step <= saved]
    kept = set(older[-max(keep, 1) :]) | {link_target(folder, BEST), link_target(folder, LATEST)}
    for step in older:
        path = folder / step_name(step)
        if step not in kept and _is_folder(path):
            doomed = folder / removed_name(path.name)
            remove(doomed)
            os.rename(path, doomed)
            remove(doomed)


def replace(staging: Path, final: Path) -> None:
    """Give ``staging`` the name ``final``; a folder there moves aside first, where readers still find it."""
    aside = final.with_name(replaced_name(final.name))
    if not os.path.lexists(final):
        os.rename(staging, final)
    else:
        remove(aside)
        os.rename(final, aside)
        try:
            os.rename(staging, final)
        except BaseException:
            os.rename(aside, final)
            raise
    sync_folder(final.parent)
    remove(aside)


def remove(path: Path) -> None:
    """Delete a folder and what is in it, or a link or file itself; nothing there is fine."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_target(folder: Path, name: str) -> int | None:
    """The step that ``latest`` or ``best`` names, None if there is no such link or it points elsewhere."""
    try:
        return step_of(os.readlink(folder / name))
    except OSError:
        return None


def _settle_replaced(aside: Path, final: Path) -> None:
    if os.path.lexists(final):
        remove(aside)
    else:
        os.rename(aside, final)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
