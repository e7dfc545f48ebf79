"""Rescue: after a rank's death the others save the newest step of which every part is whole in the memory of some rank.

A thread does it, for the rank's own may wait for the dead one for ever. Who started the ranks tells them (``NOTICE``), gives
them time, and ends them.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from dml_runner.checkpoint import tidy
from dml_runner.checkpoint.saver import Saver
from dml_runner.comm.meeting import Meeting
from dml_runner.comm.world import World
from dml_runner.engines.copies import Copies
from dml_runner.errors import DmlError, RunFailed
from dml_runner.layout import Layout

PREFIX = "rescue"
"""Part of the ranks' store that a rescue has to itself."""
NOTICE, FOUND = "notice", "found"
"""Where it holds that somebody died, and what was done about it: a sentence."""
RESCUE_S = 60.0
"""Seconds the ranks get to save what they hold."""
NOTICE_S = 2.0
"""Seconds within which a death must have been noticed from outside by the time that a connection broke of it."""
FIRST = 10**6
"""Number of a rescue's save: no start of a run makes as many by itself."""
_EVER = timedelta(days=30)


class Rescue:
    """One rank's part in it; used as a context around the loop.

    Args:
        copies: what this rank keeps of the last steps.
        folder: the run's ``checkpoints``.
        layout: how the job is executed.
        generation: number of this start of the run.
        keep: newest steps to keep.
        world: the ranks.
        saver: with which the loop saves; given up before anything is saved here.
    """

    def __init__(self, copies: Copies, folder: Path, layout: Layout, generation: int, keep: int, world: World, saver: Saver | None) -> None:
        assert world.store is not None
        self._copies, self._folder, self._layout, self._world, self._saver = copies, folder, layout, world, saver
        self._generation, self._keep = generation, keep
        self._progress: dict[int, Mapping[str, Any]] = {}
        self._noticed = threading.Event()
        # a client of its own: while one waits, it answers nobody else
        self._store = world.store.clone()  # type: ignore[attr-defined]  # known to every store, but not to torch's types

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="rescue", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stay while the others may need what this rank holds, if that is why the loop failed."""
        if self._noticed.wait(NOTICE_S if kind is not None and issubclass(kind, RuntimeError) else 0.0):
            time.sleep(RESCUE_S)

    def copy(self, step: int, progress: Mapping[str, Any]) -> None:
        """Copy ``step``, once, and remember how far the loop had come; called by all ranks together.

        Raises:
            RuntimeError: a rank is gone.
        """
        if step in self._progress:
            return
        self._copies.settle()
        self._world.highest(0)  # all have settled: the copies before the last may be written over
        self._progress = {**{older: self._progress[older] for older in sorted(self._progress)[-1:]}, step: progress}
        self._copies.copy(step)

    def _watch(self) -> None:
        store = dist.PrefixStore(PREFIX, self._store)
        try:
            store.wait([NOTICE], _EVER)
        except RuntimeError:  # whoever started the ranks is gone, and they end with it
            return
        self._noticed.set()
        try:
            self._rescue(store)
        except Exception:
            traceback.print_exc()
        os._exit(RunFailed.exit_code)

    def _rescue(self, store: dist.Store) -> None:
        if self._saver is not None:
            self._saver.close()  # from here on no other step is committed
        committed = max(tidy.steps(self._folder), default=0)
        meeting = Meeting(store, self._world.rank, self._world.size)
        words = meeting.gather(torch.tensor([(-1, committed), *self._copies.held()]))
        step, acting = choose(self._layout, meeting.living, words)
        if step == 0:
            if self._world.rank == meeting.living[0]:
                store.set(FOUND, "no newer step is whole in the memory of those that are left")
            return
        mine = [part for part, rank in acting.items() if rank == self._world.rank]
        try:
            self._save(step, mine)
        except DmlError as error:
            store.set(FOUND, f"the copy of step {step} was not saved: {error}")
            return
        if 0 in mine:
            store.set(FOUND, self._tell(step, acting))

    def _save(self, step: int, parts: Sequence[int]) -> None:
        savers = {
            part: Saver(self._folder, part, self._layout.savers, self._generation, self._keep, RESCUE_S, first=FIRST) for part in parts
        }
        for part, saver in savers.items():
            saver.save(step, self._copies.pieces(part, step), self._progress[step])
        for saver in savers.values():
            saver.wait()

    def _tell(self, step: int, acting: Mapping[int, int]) -> str:
        owners = {self._layout.saver(rank): rank for rank in range(self._layout.world_size)}
        lost = {owners[part]: rank for part, rank in acting.items() if rank != owners[part]}
        of = [f"the replica of {self._name(rank)} in {self._name(other)} is of step {step}" for rank, other in lost.items()]
        return "; ".join(of) or f"the last copies are of step {step}"

    def _name(self, rank: int) -> str:
        number = rank - self._layout.mesh.size
        return f"server {number} (rank {rank})" if number >= 0 else f"worker {rank}"


def choose(layout: Layout, living: Sequence[int], words: Sequence[Tensor]) -> tuple[int, dict[int, int]]:
    """The step to save, and the rank that saves each part of it; step 0: none is whole, or none is newer than what is saved.

    Args:
        layout: tells which rank has which part by itself.
        living: the ranks that are left.
        words: of each, rows (part, step) of what it holds; part -1: the newest step on disk.
    """
    holders: dict[tuple[int, int], int] = {}
    for rank, word in zip(living, words, strict=True):
        for part, step in word.tolist():
            if (part, step) not in holders or layout.saver(rank) == part:
                holders[part, step] = rank
    committed = max(step for part, step in holders if part == -1)
    steps = {step for _, step in holders}
    whole = [step for step in steps if all((part, step) in holders for part in range(layout.savers))]
    newest = max(whole, default=0)
    return (newest, {part: holders[part, newest] for part in range(layout.savers)}) if newest > committed else (0, {})
