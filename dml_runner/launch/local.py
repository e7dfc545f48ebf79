"""Ranks started on this machine, generation by generation, until the job is done or cannot be."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from dml_runner import pulse
from dml_runner.checkpoint.newest import newest
from dml_runner.errors import Diverged, DmlError, Problem, RunFailed
from dml_runner.generation import Generation, generation_text
from dml_runner.launch import failure
from dml_runner.launch.agent import Ending, Watch, run_generation
from dml_runner.launch.prepare import Prepared, next_generation
from dml_runner.launch.rank import be_rank, stack_file
from dml_runner.launch.rendezvous import LoopbackStore
from dml_runner.launch.request import main_left_out
from dml_runner.launch.restarts import Restarts
from dml_runner.launch.signals import Wish, handlers_kept
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
                return self._wish.reason or Reason(ending.reason)
            if self._wish.reason is not Reason.NONE:
                return self._wish.reason
            generation = self._again(generation, ending)

    def _start(self, generation: Generation) -> Ending:
        failure.forget(self._folder, self._ranks)
        pulse.create(self._beats, self._ranks)
        stacks = tuple(stack_file(self._folder, rank) for rank in range(self._ranks))
        watch = Watch(self._wish, Listener(self._beats, self._ranks), stacks)
        ticket = Ticket(str(self._folder.path), self._prepared.job, generation_text(generation), str(self._beats), os.getpid())
        return run_generation(be_rank, ticket, self._ranks, generation.number, self._meeting, watch)

    def _again(self, generation: Generation, ending: Ending) -> Generation:
        """The next generation, from the last sound step."""
        causes = failure.explain(self._folder, self._ranks, ending.exits, ending.steps)
        text = str(ending.hang) if ending.hang else causes[0].text
        committed, notices = newest(self._folder.checkpoints)
        step = 0 if committed is None else committed.step
        code = 5 if ending.hang else causes[0].exit_code
        verdict = self._restarts.judge(failed_at=max(ending.steps), committed=step)
        if code != RunFailed.exit_code or verdict is not None:
            raise _error(code, text, verdict, [cause.text for cause in causes[1:]])
        for line in (text, *notices, f"starting again from step {step}"):
            print(line, file=sys.stderr, flush=True)
        resume = None if committed is None else committed.folder.resolve()
        return next_generation(self._folder, self._prepared.layout, self._prepared.plan, generation.began, resume)


def _error(code: int, text: str, verdict: str | None, others: list[str]) -> DmlError:
    """The error that ends the run: the cause first, what other ranks said of it last."""
    kind = Diverged if code == Diverged.exit_code else RunFailed
    error = kind(Problem("", text, hint=verdict), *(Problem("", f"then: {other.splitlines()[-1]}") for other in others))
    error.exit_code = code
    return error
