"""The commit of a step: each function is one stage, and a death between any two leaves the last committed step whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dml_runner.checkpoint.index import merge, parse_index
from dml_runner.checkpoint.manifest import FORMAT, Manifest
from dml_runner.checkpoint.marks import Share
from dml_runner.checkpoint.names import BEST, INDEX, LATEST, MANIFEST, STATE, link_name, step_name
from dml_runner.checkpoint.shard import FileFact
from dml_runner.checkpoint.tidy import prune, replace
from dml_runner.errors import Problem, RunFailed
from dml_runner.files import digest_text, sync_folder, write_atomically


def encode_state(step: int, state: Mapping[str, Any]) -> str:
    """The text of ``state.json``.

    Raises:
        RunFailed: the state holds something else than text, finite numbers, true, false, null, lists and objects.
    """
    try:
        return json.dumps({"format": FORMAT, "step": step, "state": dict(state)}, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise RunFailed(Problem("checkpoint", f"the state is not plain JSON: {error}")) from error


def encode_index(step: int, shares: Sequence[Share]) -> str:
    """The text of ``index.json`` out of all ranks' shares.

    Raises:
        NotAsWritten: the parts of a tensor overlap or do not cover it.
    """
    tensors = merge(share.tensors for share in shares)
    parse_index(tensors)
    return json.dumps({"format": FORMAT, "step": step, "tensors": tensors}) + "\n"


def write_descriptions(staging: Path, step: int, shares: Sequence[Share], state: str) -> dict[str, FileFact]:
    """Write ``index.json`` and ``state.json``; returns size and SHA-256 of every file of the step."""
    files = {share.file: share.fact for share in shares if share.file is not None}
    for name, text in ((INDEX, encode_index(step, shares)), (STATE, state)):
        write_atomically(staging / name, text)
        files[name] = FileFact(len(text.encode()), digest_text(text))
    return files


def write_manifest(staging: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, the last file of a step."""
    write_atomically(staging / MANIFEST, manifest.text())


def publish(staging: Path, folder: Path, step: int, keep: int, best: bool) -> None:
    """Give the finished step its name, point ``latest`` (and ``best``) at it, then prune."""
    replace(staging, folder / step_name(step))
    point(folder, LATEST, step)
    if best:
        point(folder, BEST, step)
    prune(folder, step, keep)


def point(folder: Path, name: str, step: int) -> None:
    """Point the link ``latest`` or ``best`` at a step: a reader sees the old or the new target."""
    link = folder / link_name(name)
    link.unlink(missing_ok=True)
    os.symlink(step_name(step), link)
    os.replace(link, folder / name)
    sync_folder(folder)
