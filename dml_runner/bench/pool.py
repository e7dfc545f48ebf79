"""Many small jobs, one after the other, in the same few processes, without a run folder each."""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from dml_runner import data
from dml_runner.facts import DataFacts
from dml_runner.launch.prepare import profile_of
from dml_runner.launch.request import main_left_out, preload, read_words
from dml_runner.layout import Layout
from dml_runner.planning.close import settle
from dml_runner.planning.plan import lay_out
from dml_runner.pretrained import task_for
from dml_runner.run import Run
from dml_runner.seat import die_with

PATIENCE = timedelta(seconds=60)
"""That ranks wait for each other; and what a job may take."""


@dataclass(frozen=True)
class Job:
    """What the ranks execute; ``save`` is where they save steps, ``resume`` a saved step they begin at."""

    run: Run
    facts: DataFacts
    layout: Layout
    save: Path | None
    resume: Path | None


def job_of(words: Sequence[str], cache: Path, save: Path | None = None, resume: Path | None = None) -> Job:
    """The job of ``words``, laid out; what its data is made into is kept in ``cache``.

    Raises:
        ConfigError: a word is wrong.
        PlanError: it cannot be laid out so.
    """
    run = read_words(words).run
    facts = data.prepare(run.data, task_for(run), cache)
    profile = profile_of(run, None)
    layout, _ = settle(run, facts, lay_out(run, facts, profile), profile)
    return Job(run, facts, layout, save, resume)


@dataclass
class Trained:
    """What a job came to.

    Attributes:
        rows: of training, as in metrics.jsonl.
        evaluations: rows of them, the last one of the whole held-out set.
        weights: for each worker, a number for every parameter: equal where all bits are.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    weights: list[list[int]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """The loss of each logged step."""
        return [row["loss"] for row in self.rows]

    @property
    def held_out(self) -> list[float]:
        """The loss of every evaluation."""
        return [row["eval_loss"] for row in self.evaluations]

    # --- as a tracker, on rank 0 ---

    def log(self, row: Mapping[str, Any]) -> None:
        """Keep a row."""
        (self.evaluations if "eval_loss" in row else self.rows).append(dict(row))

    def note(self, text: str) -> None:
        """Nobody reads it."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing is held."""


@contextmanager
def ranks(size: int, folder: Path) -> Iterator[Ranks]:
    """``size`` processes, ready for jobs of that many ranks or fewer."""
    found = Ranks(size, folder)
    try:
        yield found
    finally:
        found.stop()


class Ranks:
    """Processes that execute jobs; they are started anew after one of them failed, for the others wait for it."""

    def __init__(self, size: int, folder: Path) -> None:
        self._size, self._folder = size, folder
        self._pool: ProcessPoolExecutor | None = None

    def train(self, *jobs: Job) -> list[Trained]:
        """Execute the jobs, one after the other."""
        from torch.distributed import TCPStore

        assert all(job.layout.world_size <= self._size for job in jobs)
        meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=False)
        place = str(self._folder / f"meet-{uuid.uuid4().hex}")
        with main_left_out():
            pool = self._started()
            try:
                waiting = [pool.submit(_all, rank, meeting.port, place, jobs) for rank in range(self._size)]
                wait(waiting, PATIENCE.total_seconds() * (1 + len(jobs)), FIRST_EXCEPTION)
                for each in sorted(waiting, key=lambda each: each.running()):  # what failed tells more than who still waits for it
                    each.result(0)
            except BaseException:
                self.stop(kill=True)
                raise
        of_ranks = [each.result() for each in waiting]
        for number, (first, *others) in enumerate(zip(*of_ranks, strict=True)):
            assert first is not None
            first.weights = [each.weights[0] for each in (first, *others)[: jobs[number].layout.mesh.size] if each is not None]
        return [first for first in of_ranks[0] if first is not None]

    def stop(self, kill: bool = False) -> None:
        """End the processes."""
        if self._pool is not None:
            for process in list(self._pool._processes.values()) if kill else ():
                process.kill()
            self._pool.shutdown()
        self._pool = None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            preload()
            self._pool = ProcessPoolExecutor(self._size, multiprocessing.get_context("forkserver"), die_with, (os.getpid(),))
        return self._pool


def _all(rank: int, port: int, place: str, jobs: Sequence[Job]) -> list[Trained | None]:
    import torch
    from torch.distributed import PrefixStore, TCPStore

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    meeting = TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE, use_libuv=False)
    found: list[Trained | None] = []
    for number, each in enumerate(jobs):
        taking_part = rank < each.layout.world_size
        found.append(_one(rank, PrefixStore(f"job-{number}", meeting), f"{place}-{number}", each) if taking_part else None)
    return found


def _one(rank: int, store: Any, place: str, job: Job) -> Trained:
    import torch

    from dml_runner.checkpoint.read import open_step
    from dml_runner.checkpoint.saver import Saver
    from dml_runner.comm.world import close_world, open_meeting, open_world
    from dml_runner.engines.assemble import assemble
    from dml_runner.facts import task_of
    from dml_runner.loops.asynchronous import AsynchronousLoop
    from dml_runner.loops.progress import Progress
    from dml_runner.loops.session import Session
    from dml_runner.loops.stop import StopRequest
    from dml_runner.loops.train import TrainLoop
    from dml_runner.pulse import Pulse, create

    layout, cpu = job.layout, torch.device("cpu")
    beats = Path(f"{place}-{rank}")
    create(beats, layout.world_size)
    if layout.lockstep:
        world = open_world(rank, layout.world_size, cpu, "gloo", store if layout.world_size > 1 else None, PATIENCE)
    else:
        world = open_meeting(rank, layout.world_size, cpu, store)
    engine = assemble(job.run, job.facts, layout, world)
    progress, found = Progress(), Trained()
    if job.resume is not None:
        step = open_step(job.resume)
        engine.restore(step)
        progress = Progress(**step.state)
    mine = layout.saver(rank)
    with nullcontext() if job.save is None or mine is None else Saver(job.save, mine, layout.savers, 0, 99) as saver:
        session = Session(
            run=job.run,
            layout=layout,
            facts=job.facts,
            data=data.open_data(job.run.data, task_of(job.run.model), job.facts, job.run.seed),
            engine=engine,
            world=world,
            tracker=found if rank == 0 else None,
            saver=saver,
            stop=StopRequest(),
            pulse=Pulse(beats, rank, 10.0),
        )
        (TrainLoop if layout.lockstep else AsynchronousLoop)(session, progress).run()
    found.weights = [engine.fingerprint()[1].tolist()]
    engine.close()
    if layout.lockstep:
        close_world(world)
    return found
