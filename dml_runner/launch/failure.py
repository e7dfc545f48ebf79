"""Why a generation failed: the first rank's own error first, the others' broken connections last."""

from __future__ import annotations

import errno
import json
import re
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dml_runner.errors import CameApart, DmlError
from dml_runner.files import write_json
from dml_runner.run_folder import RunFolder

_LOST_PEER = re.compile(r"connection (closed|reset|refused)|broken pipe|socket|gloo|nccl|timed out|tcpstore|process group", re.IGNORECASE)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RankError:
    """One rank's end.

    Attributes:
        rank: which.
        at: when, in seconds of this host's monotonic clock; 0 where the rank could not say.
        text: what happened, in one line or more.
        exit_code: what the command shall end with if this was the cause.
        lost_peer: whether it only tells of another rank's end.
        kind: ``error`` (raised), ``signal`` (killed), ``left`` (ended without an error) or ``hang``.
        final: whether starting again would not help: the disk is full, or the ranks' weights came apart.
    """

    rank: int
    at: float
    text: str
    exit_code: int
    lost_peer: bool
    kind: str
    final: bool = False


def record(folder: RunFolder, rank: int, error: BaseException, spare: Path | None = None) -> RankError:
    """Write down, from inside rank ``rank``, why it ends: in the run folder, and in ``spare``, on a disk that may have room."""
    known = isinstance(error, DmlError)
    text = str(error) if known else "".join(traceback.format_exception_only(error)).strip()
    found = RankError(
        rank=rank,
        at=time.monotonic(),
        text=text,
        exit_code=error.exit_code if isinstance(error, DmlError) else 5,
        lost_peer=not known and bool(_LOST_PEER.search(text)),
        kind="error",
        final=isinstance(error, CameApart) or _no_room(error) or _no_room(error.__cause__),
    )
    for path in (folder.error(rank), *([spare / folder.error(rank).name] if spare else [])):
        with suppress(OSError):
            write_json(path, asdict(found))
    return found


def _no_room(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def forget(folder: RunFolder, ranks: int, spare: Path) -> None:
    """Remove what earlier generations recorded."""
    for rank in range(ranks):
        for path in _records(folder, rank, spare):
            path.unlink(missing_ok=True)


def explain(folder: RunFolder, ranks: int, exits: dict[int, int], steps: list[int], spare: Path) -> list[RankError]:
    """What is known of the ranks' ends, the cause first; what several say in the same words, once.

    Args:
        exits: exit code of each rank that ended by itself (negative: killed by that signal).
        steps: the step each rank began last.
        spare: where ranks that could not write into the run folder wrote.
    """
    found = []
    for rank in range(ranks):
        known = next(filter(None, map(_read, _records(folder, rank, spare))), None)
        if known is not None or rank in exits:
            found.append(known or _from_exit(rank, exits[rank], steps[rank]))
    found.sort(key=lambda e: (e.lost_peer, not e.final, e.kind == "left", e.at))
    return [each for number, each in enumerate(found) if each.text not in [earlier.text for earlier in found[:number]]]


def _records(folder: RunFolder, rank: int, spare: Path) -> tuple[Path, Path]:
    return folder.error(rank), spare / folder.error(rank).name


def _read(path: Path) -> RankError | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return RankError(**content)
    except (OSError, ValueError, TypeError):
        return None


def _from_exit(rank: int, code: int, step: int) -> RankError:
    if code >= 0:
        what = "left" if code == 0 else f"ended with code {code}"
        return RankError(rank, 0.0, f"rank {rank} {what} at step {step} without an error", 5, False, "left")
    name = signal.Signals(-code).name
    hint = "; out of memory? see the kernel's log" if name == "SIGKILL" else ""
    return RankError(rank, 0.0, f"rank {rank} was killed by {name} at step {step}{hint}", 5, False, "signal")
