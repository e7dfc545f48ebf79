"""Saver: one rank's side of saving. The caller waits for copies in host memory only; a thread does the disk work."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dml_runner.checkpoint import commit, marks, tidy
from dml_runner.checkpoint.buffers import Held, HostBuffers, total_bytes
from dml_runner.checkpoint.index import describe
from dml_runner.checkpoint.manifest import Manifest
from dml_runner.checkpoint.names import shard_name, staging_name, step_name
from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.shard import FileFact, write_shard
from dml_runner.checkpoint.strict_json import NotAsWritten
from dml_runner.errors import DmlError, Problem, RunFailed

SETTLE_S = 60.0
"""Seconds rank 0 waits, after a failure, for the others to stop writing before it removes what they wrote."""
FULL = {errno.ENOSPC: "No space left", errno.EDQUOT: "Disk quota exceeded", errno.EFBIG: "Limit of file size reached"}
"""What a full disk says."""
MARGIN = 2**20
"""Bytes that must stay free beside the tensors, for the small files of a step."""


@dataclass(frozen=True)
class _Save:
    step: int
    number: int
    held: Sequence[Held]
    state: str
    best: bool
    staging: Path


class _Closed(Exception):
    """The saver was closed while it wrote."""


class Saver:
    """Saves steps of one rank into a run's ``checkpoints`` folder.

    All ranks call ``save`` for the same steps in the same order. Used as a context, it waits for the last save when
    the block ends well and gives it up when the block raises.

    Args:
        folder: the run's ``checkpoints`` folder, shared by all ranks; made if missing.
        rank: of the caller; rank 0 commits, and takes away what earlier generations left half-done.
        ranks: number of ranks that call ``save``.
        generation: number of this start of the run; no two starts may share one.
        keep: newest steps to keep, at least 1; the best step is kept besides.
        timeout_s: seconds to wait for other ranks before a save counts as failed.
        first: number of the first save; no two saves of a generation may share one.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, generation: int, keep: int, timeout_s: float = 1800.0, first: int = 1) -> None:
        self._folder, self._rank, self._ranks = folder, rank, ranks
        self._generation, self._keep, self._timeout_s = generation, keep, timeout_s
        self._buffers = HostBuffers()
        self._failure: DmlError | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._number = first - 1
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            tidy.reap(folder, generation)

    def save(self, step: int, pieces: Iterable[Piece], state: Mapping[str, Any], best: bool = False) -> None:
        """Copy ``pieces`` to host memory and start to write them; waits for an earlier save first.

        Args:
            step: number of the update after which the state is taken.
            pieces: what this rank has to write.
            state: plain JSON values to keep beside the tensors; only rank 0's counts.
            best: whether this is the best step so far.

        Raises:
            RunFailed: an earlier save failed, or ``pieces`` or ``state`` cannot be stored.
        """
        self._number += 1
        self.wait()
        staging = self._folder / staging_name(step, self._generation, self._number)
        text = commit.encode_state(step, state) if self._rank == 0 else ""
        save = _Save(step, self._number, self._buffers.hold(pieces), text, best, staging)
        self._thread = threading.Thread(target=self._work, args=(save,), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the failure of an earlier save, once; cheap enough for every step.

        Raises:
            RunFailed: an earlier save failed; earlier steps are untouched.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def wait(self) -> None:
        """Wait until the last save is durable on all ranks.

        Raises:
            RunFailed: it failed; earlier steps are untouched.
        """
        self._join()
        self.check()

    def close(self) -> None:
        """Give up a save that is still in flight and stop; raises nothing. Call ``wait`` first to keep it."""
        self._closed.set()
        self._join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.close()

    def _join(self) -> None:
        thread = self._thread  # two may wait for it, in `wait` and in `close`
        if thread is not None:
            thread.join()
            self._thread = None

    def _work(self, save: _Save) -> None:
        _be_gentle()
        handed_over = False
        try:
            share = self._write_share(save)
            if self._rank:
                marks.leave_done(save.staging, self._rank, share)
                handed_over = True
                self._await_commit(save)
            else:
                self._commit(save, share)
        except Exception as error:
            _try(lambda: (save.staging / shard_name(self._rank)).unlink(missing_ok=True), unless=handed_over)
            self._failure = self._explain(save, error)
            if not handed_over:
                self._abandon(save, str(error))

    def _write_share(self, save: _Save) -> marks.Share:
        """Write this rank's tensors and make them durable."""
        self._check_space(save)
        save.staging.mkdir(exist_ok=True)
        name = shard_name(self._rank)
        if not save.held:
            return marks.Share(None, FileFact(0, ""), {})
        fact = write_shard(save.staging / name, save.held, self._pause)
        return marks.Share(name, fact, describe(name, save.held))

    def _commit(self, save: _Save, own: marks.Share) -> None:
        """Rank 0: wait for the others, describe the step, commit it."""
        shares = [own, *marks.await_shares(save.staging, self._ranks, self._timeout_s, self._pause)]
        files = commit.write_descriptions(save.staging, save.step, shares, save.state)
        marks.remove_marks(save.staging, self._ranks)
        commit.write_manifest(save.staging, Manifest(save.step, self._generation, save.number, files))
        commit.publish(save.staging, self._folder, save.step, self._keep, save.best)

    def _await_commit(self, save: _Save) -> None:
        """Other ranks: wait until rank 0 has committed."""
        final = self._folder / step_name(save.step)
        wanted = (self._generation, save.number)
        marks.await_commit(save.staging, final, self._rank, self._ranks, wanted, self._timeout_s, self._pause)

    def _pause(self) -> None:
        if self._closed.is_set():
            raise _Closed("closed before the step was written")

    def _check_space(self, save: _Save) -> None:
        if total_bytes(save.held) + MARGIN > _free(self._folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))

    def _abandon(self, save: _Save, reason: str) -> None:
        """Tell the other ranks that this one failed; rank 0 removes the staging folder once they write no more."""
        if self._rank == 0 and marks.is_committed(self._folder / step_name(save.step), (self._generation, save.number)):
            return
        if self._ranks > 1:
            marks.leave_failed(save.staging, self._rank, reason)
        if self._rank == 0:
            if not self._closed.is_set():
                marks.await_settled(save.staging, self._ranks, min(SETTLE_S, self._timeout_s), self._closed)
            _try(lambda: tidy.remove(save.staging))

    def _explain(self, save: _Save, error: Exception) -> DmlError:
        if isinstance(error, DmlError):
            return error
        what = f"step {save.step} was not saved: {error}"
        if isinstance(error, OSError):
            where = error.filename or self._folder
            what = f"step {save.step} was not saved: {error.strerror or error}: {where}"
            if error.errno in FULL:
                need, have = (total_bytes(save.held) + MARGIN) / 1e6, _free(self._folder) / 1e6
                what = f"{FULL[error.errno]} on {self._folder}; need {need:.1f} MB, have {have:.1f} MB"
        elif not isinstance(error, (marks.PeerFailed, NotAsWritten, _Closed)):
            what = f"step {save.step} was not saved: {type(error).__name__}: {error}"
        failure = RunFailed(Problem("checkpoint", what, hint=self._hint()))
        failure.__cause__ = error
        return failure

    def _hint(self) -> str:
        kept: list[int] = []
        _try(lambda: kept.extend(tidy.steps(self._folder)))
        return f"the last committed step is {kept[-1]}" if kept else "no step is committed yet"


def _free(folder: Path) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def _be_gentle() -> None:
    """Let the training's threads go first wherever cores are short."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _try(action: Callable[[], object], unless: bool = False) -> None:
    """Do what helps, and go on if the disk refuses."""
    if not unless:
        with contextlib.suppress(OSError):
            action()
