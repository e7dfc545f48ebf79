"""Why a generation failed: the first rank's own error first, the others' broken connections last."""

from __future__ import annotations

import json
import re
import signal
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from dml_runner.errors import DmlError
from dml_runner.files import write_json
from dml_runner.run_folder import RunFolder

_LOST_PEER = re.compile(r"connection (closed|reset|refused)|broken pipe|socket|gloo|nccl|timed out|tcpstore|process group", re.IGNORECASE)


@dataclass(frozen=True)
class RankError:
    """One rank's end.

    Attributes:
        rank: which.
        at: when, in seconds since 1970; 0 where the rank could not say.
        text: what happened, in one line or more.
        exit_code: what the command shall end with if this was the cause.
        lost_peer: whether it only tells of another rank's end.
        kind: ``error`` (raised), ``signal`` (killed) or ``left`` (ended without an error).
    """

    rank: int
    at: float
    text: str
    exit_code: int
    lost_peer: bool
    kind: str


def record(folder: RunFolder, rank: int, error: BaseException) -> RankError:
    """Write down, from inside rank ``rank``, why it ends."""
    own = isinstance(error, DmlError)
    text = str(error) if isinstance(error, DmlError) else "".join(traceback.format_exception_only(error)).strip()
    found = RankError(
        rank, time.time(), text, error.exit_code if isinstance(error, DmlError) else 5, not own and bool(_LOST_PEER.search(text)), "error"
    )
    write_json(folder.error(rank), asdict(found))
    return found


def forget(folder: RunFolder, ranks: int) -> None:
    """Remove what earlier generations recorded."""
    for rank in range(ranks):
        folder.error(rank).unlink(missing_ok=True)


def explain(folder: RunFolder, ranks: int, exits: dict[int, int], steps: list[int]) -> list[RankError]:
    """What is known of the ranks' ends, the cause first.

    Args:
        exits: exit code of each rank that ended by itself (negative: killed by that signal).
        steps: the step each rank began last.
    """
    found = [
        _read(folder, rank) or _from_exit(rank, exits[rank], steps[rank])
        for rank in range(ranks)
        if rank in exits or folder.error(rank).exists()
    ]
    return sorted(found, key=lambda e: (e.lost_peer, e.kind == "left", e.at))


def _read(folder: RunFolder, rank: int) -> RankError | None:
    try:
        content: dict[str, Any] = json.loads(folder.error(rank).read_text())
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
