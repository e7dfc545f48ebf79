"""Ranks started on this machine, generation by generation, until the job is done or cannot be."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path

from torch.distributed import PrefixStore, Store

from dml_runner import plugins, pulse
from dml_runner.checkpoint.names import step_of
from dml_runner.checkpoint.newest import newest
from dml_runner.comm.meeting import dead_key
from dml_runner.errors import Diverged, DmlError, Interrupted, Problem, RunFailed, Terminated
from dml_runner.generation import Generation, generation_text
from dml_runner.launch import failure
from dml_runner.launch.agent import Ending, Watch, run_generation
from dml_runner.launch.failure import RankError
from dml_runner.launch.hang import Hang
from dml_runner.launch.prepare import Prepared, next_generation
from dml_runner.launch.rank import be_rank, stack_file
from dml_runner.launch.rendezvous import LoopbackStore
from dml_runner.launch.request import main_left_out, preload
from dml_runner.launch.restarts import Restarts
from dml_runner.launch.signals import Wish, handlers_kept
from dml_runner.loops.rescue import FOUND, NOTICE, PREFIX
from dml_runner.loops.stop import Reason
from dml_runner.pulse import Listener
from dml_runner.worker import Ticket


def run_ranks(prepared: Prepared) -> Reason:
    """Train with as many processes as the layout has ranks; returns why the run ended early, if it did.

    Raises:
        RunFailed: a rank failed, and starting again would not help.
    """
    with tempfile.TemporaryDirectory(prefix="dml-") as shared, handlers_kept():
        supervisor = Supervisor(prepared, Path(shared) / "pulse")
        with main_left_out():
            return supervisor.run()


class Supervisor:
    """Starts generations of ranks and decides after each what comes next."""

    def __init__(self, prepared: Prepared, beats: Path) -> None:
        self._prepared = prepared
        self._began = time.monotonic() - max(0.0, time.time() - prepared.generation.began)
        self._folder = prepared.start.folder
        self._ranks = prepared.layout.world_size
        self._beats = beats
        self._wish = Wish()
        self._meeting = LoopbackStore()
        self._restarts = Restarts()

    def run(self) -> Reason:
        """Generations until one succeeds, the user wished to stop, or starting again would not help."""
        self._wish.install()
        generation = self._prepared.generation
        while True:
            ending = self._start(generation)
            if ending.succeeded:
                # a wish that came too late to stop anything is none: the run completed
                return max(self._wish.reason, Reason(ending.reason)) if ending.reason else Reason.NONE
            generation = self._again(generation, ending)

    def _start(self, generation: Generation) -> Ending:
        preload()
        spare = self._beats.parent
        failure.forget(self._folder, self._ranks, spare)
        pulse.create(self._beats, self._ranks)
        stacks = tuple(stack_file(self._folder, rank) for rank in range(self._ranks))
        floor_s = self._prepared.run.launcher.hang_floor_s
        watch = Watch(
            self._wish,
            Listener(self._beats, self._ranks),
            stacks,
            floor_s,
            self._spare(),
            partial(self._tell, generation.number),
            partial(self._call_for_rescue, generation.number) if self._has_replicas else None,
        )
        ticket = Ticket(
            folder=str(self._folder.path),
            job=self._prepared.job,
            generation=generation_text(generation),
            pulse=str(self._beats),
            launcher=os.getpid(),
            spent_s=time.monotonic() - self._began,
            plugins=plugins.carry(self._prepared.run),
        )
        return run_generation(be_rank, ticket, self._ranks, generation.number, self._meeting, watch)

    def _spare(self) -> frozenset[int]:
        """Ranks that may die and nothing is lost but what they were at."""
        return frozenset(rank for rank in range(self._ranks) if self._prepared.layout.saver(rank) is None)

    def _tell(self, number: int, rank: int, code: int, step: int, hang: Hang | None) -> None:
        """Tell people and ranks that a spare rank died."""
        store = PrefixStore("ranks", self._meeting.generation(number))
        store.set(dead_key(rank), str(code))
        (error, *_) = failure.explain(self._folder, self._ranks, {rank: code}, [step] * self._ranks, self._beats.parent)
        line = (
            f"{hang or error.text}; the other workers go on, and the slice it was at is given to one of them (lost: at most that one push)"
        )
        print(line, file=sys.stderr, flush=True)

    @property
    def _has_replicas(self) -> bool:
        servers = self._prepared.layout.servers
        return servers is not None and servers.replicas > 0

    def _rescue(self, number: int) -> Store:
        """Where ranks of a generation agree on what to save after a death."""
        return PrefixStore(f"ranks/{PREFIX}", self._meeting.generation(number))

    def _call_for_rescue(self, number: int, dead: Collection[int]) -> None:
        """Have the ranks save what they hold, without those that are dead."""
        store = self._rescue(number)
        for rank in dead:
            store.set(dead_key(rank), "dead")
        store.set(NOTICE, "now")

    def _found(self, number: int) -> list[str]:
        """What became of a rescue."""
        if not self._has_replicas:
            return []
        store = self._rescue(number)
        return [store.get(FOUND).decode()] if store.check([FOUND]) else ["no step could be saved from the servers' replicas"]

    def _again(self, generation: Generation, ending: Ending) -> Generation:
        """The next generation, from the last sound step; a run that was forked and saved nothing yet goes back to its parent's.

        Raises:
            RunFailed: starting again would not help.
            Terminated: the end was asked for, and nothing was lost by ending without a save; so for Interrupted.
        """
        cause, others = self._cause(ending)
        committed, notices = newest(self._folder.checkpoints)
        resume = generation.resume if committed is None else str(committed.folder.resolve())
        step = 0 if resume is None else step_of(Path(resume).name) or 0
        verdict = self._restarts.judge(failed_at=max(ending.steps), committed=step)
        if cause.exit_code != RunFailed.exit_code or cause.final or verdict is not None:
            raise _error(cause.exit_code, cause.text, verdict, others)
        if self._wish.reason is not Reason.NONE:
            raise _cut_short(self._wish.reason, cause.text, step, max(ending.steps) - 1)
        again = f" (steps {step + 1} to {max(ending.steps)} are done again)" if max(ending.steps) > step else ""
        for line in (cause.text, *self._found(generation.number), *notices, f"starting again from step {step}{again}"):
            print(line, file=sys.stderr, flush=True)
        plan = self._prepared.plan
        try:
            return next_generation(self._folder, plan.layout, plan, generation.began, None if resume is None else Path(resume))
        except OSError as error:
            raise RunFailed(Problem("", cause.text, hint=f"the next start cannot be written down: {error}")) from error

    def _cause(self, ending: Ending) -> tuple[RankError, list[str]]:
        """Why the generation ended, and what other ranks said of it."""
        causes = failure.explain(self._folder, self._ranks, ending.exits, ending.steps, self._beats.parent)
        if ending.hang is not None:
            return RankError(ending.hang.rank or 0, 0.0, str(ending.hang), RunFailed.exit_code, False, "hang"), []
        return causes[0], [cause.text for cause in causes[1:] if not cause.lost_peer]


def _cut_short(reason: Reason, text: str, saved: int, done: int) -> DmlError:
    """The error that ends a run whose ranks were asked to save and could not: they had not begun, or one died of something else."""
    if done > saved:
        return RunFailed(Problem("", text, hint=f"the end was asked for, but steps {saved + 1} to {done} are not saved"))
    kind = Interrupted if reason is Reason.INTERRUPTED else Terminated
    return kind(f"stopped before anything new was done; the last saved step is {saved}" if saved else "stopped before anything was done")


def _error(code: int, text: str, verdict: str | None, others: list[str]) -> DmlError:
    """The error that ends the run: the cause first, what other ranks said of it last."""
    kind = Diverged if code == Diverged.exit_code else RunFailed
    error = kind(Problem("", text, hint=verdict), *(Problem("", f"then: {other.splitlines()[-1]}") for other in others))
    error.exit_code = code
    return error
