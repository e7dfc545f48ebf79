"""How the ranks of one save tell each other, through the shared staging folder, that they are done or have failed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from dml_runner.checkpoint.manifest import parse_manifest
from dml_runner.checkpoint.names import MANIFEST, done_name, failed_name
from dml_runner.checkpoint.shard import FileFact
from dml_runner.checkpoint.strict_json import NotAsWritten, as_int, as_object, as_text, fields, parse, read_text

SHORTEST_S, LONGEST_S = 0.002, 0.1
"""Seconds between two looks at the folder: the first, and the most."""


class PeerFailed(Exception):
    """Another rank could not do its part; the text says which and why."""


@dataclass(frozen=True)
class Share:
    """What one rank contributes to a step.

    Attributes:
        file: name of its file, None if it has no tensor to write.
        fact: size and SHA-256 of that file.
        tensors: its part of the index, in JSON form.
    """

    file: str | None
    fact: FileFact
    tensors: Mapping[str, Any]


def leave_done(staging: Path, rank: int, share: Share) -> None:
    """Tell rank 0 that this rank's share is on disk."""
    fact = share.fact
    value = {"file": share.file, "size": fact.size, "sha256": fact.sha256, "tensors": share.tensors}
    _leave(staging / done_name(rank), value)


def leave_failed(staging: Path, rank: int, reason: str) -> None:
    """Tell the other ranks that this one failed, as far as the disk allows."""
    try:
        staging.mkdir(exist_ok=True)
        _leave(staging / failed_name(rank), {"reason": reason})
    except OSError:
        return


def await_shares(staging: Path, ranks: int, timeout_s: float, pause: Callable[[], None]) -> list[Share]:
    """Rank 0: the shares of ranks 1 to ``ranks - 1``, once all are done.

    Raises:
        PeerFailed: a rank failed, or ``timeout_s`` seconds passed.
    """
    for _ in _looks(timeout_s, pause):
        _raise_failed(staging, ranks, own=0)
        missing = [rank for rank in range(1, ranks) if not (staging / done_name(rank)).exists()]
        if not missing:
            return [_read_share(staging, rank) for rank in range(1, ranks)]
    raise PeerFailed(f"rank {missing[0]} did not finish its part within {timeout_s:.0f} s")


def await_settled(staging: Path, ranks: int, timeout_s: float, stop: Event) -> None:
    """Rank 0 after a failure: wait until no other rank writes any more, at most ``timeout_s`` seconds or until ``stop``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if all((staging / done_name(r)).exists() or (staging / failed_name(r)).exists() for r in range(1, ranks)):
            return
        if stop.wait(LONGEST_S):
            return


def await_commit(
    staging: Path, final: Path, rank: int, ranks: int, save: tuple[int, int], timeout_s: float, pause: Callable[[], None]
) -> None:
    """Other ranks: wait until rank 0 has committed.

    Args:
        staging: folder of this save.
        final: folder of the step.
        rank: of the caller.
        ranks: number of ranks.
        save: (generation, number of the save).
        timeout_s: seconds to wait at most.
        pause: called between looks; may raise to stop.

    Raises:
        PeerFailed: a rank failed, or ``timeout_s`` seconds passed.
    """
    for _ in _looks(timeout_s, pause):
        _raise_failed(staging, ranks, own=rank)
        if staging.exists():
            continue
        if is_committed(final, save):
            return
        raise PeerFailed("rank 0 gave the step up")
    raise PeerFailed(f"rank 0 did not commit within {timeout_s:.0f} s")


def is_committed(final: Path, save: tuple[int, int]) -> bool:
    """Whether the step in ``final`` is the one that ``save`` = (generation, number) wrote."""
    try:
        manifest = parse_manifest(read_text(final / MANIFEST))
    except NotAsWritten:
        return False
    return (manifest.generation, manifest.save) == save


def remove_marks(staging: Path, ranks: int) -> None:
    """Rank 0: take the marks away before the step is committed."""
    for rank in range(1, ranks):
        (staging / done_name(rank)).unlink()


def _looks(timeout_s: float, pause: Callable[[], None]) -> Iterator[None]:
    deadline, wait = time.monotonic() + timeout_s, SHORTEST_S
    while True:
        pause()
        yield
        if time.monotonic() > deadline:
            return
        time.sleep(wait)
        wait = min(wait * 1.5, LONGEST_S)


def _raise_failed(staging: Path, ranks: int, own: int) -> None:
    for rank in range(ranks):
        path = staging / failed_name(rank)
        if rank != own and path.exists():
            try:
                reason = as_text(parse(read_text(path)).get("reason"))
            except NotAsWritten:
                reason = "no reason given"
            raise PeerFailed(f"rank {rank} failed: {reason}")


def _read_share(staging: Path, rank: int) -> Share:
    try:
        file, size, sha256, tensors = fields(parse(read_text(staging / done_name(rank))), "file", "size", "sha256", "tensors")
        return Share(None if file is None else as_text(file), FileFact(as_int(size), as_text(sha256)), as_object(tensors))
    except NotAsWritten as error:
        raise PeerFailed(f"rank {rank} left a broken mark: {error}") from None


def _leave(path: Path, value: Mapping[str, Any]) -> None:
    """Put a mark in place at once; it need not outlive a power cut, so nothing is flushed."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(value))
    os.replace(draft, path)
