"""One rank: from a run folder's job.yaml and generation to an Outcome."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist

from dml_runner import data, metrics, plugins, tracking
from dml_runner.checkpoint.read import open_step
from dml_runner.checkpoint.saver import Saver
from dml_runner.comm.roll_call import roll_call
from dml_runner.comm.world import World, close_world, open_meeting, open_world
from dml_runner.data.base import Written
from dml_runner.engines.assemble import assemble
from dml_runner.engines.server_engine import Serving
from dml_runner.engines.worker_engine import WorkerEngine
from dml_runner.errors import LaunchError, Problem
from dml_runner.facts import task_of
from dml_runner.files import write_atomically, write_json
from dml_runner.generation import Generation, read_generation
from dml_runner.job import Job, proof, read_job
from dml_runner.layout import Role
from dml_runner.loops.asynchronous import AsynchronousLoop
from dml_runner.loops.evaluate import evaluate
from dml_runner.loops.progress import Progress
from dml_runner.loops.rescue import Rescue
from dml_runner.loops.sample import write_text
from dml_runner.loops.schedule import drawn, last_step
from dml_runner.loops.session import Session
from dml_runner.loops.stop import Reason, StopRequest
from dml_runner.loops.train import Outcome, TrainLoop
from dml_runner.loops.window import memory_bytes
from dml_runner.models.parts.generation import context_of
from dml_runner.pulse import START_ALLOWANCE_S, Pulse
from dml_runner.run_folder import RunFolder
from dml_runner.schedules.timeline import Timeline
from dml_runner.seat import Seat, pin_to_cores
from dml_runner.summary import Summary, measure
from dml_runner.tracking.jsonl import cut

GROUP_TIMEOUT = timedelta(minutes=30)
FINISH_ALLOWANCE_S = 60.0
"""Seconds an outside tracker may take to let go, or a sample beside one for each of its tokens."""


@dataclass(frozen=True)
class Ticket:
    """What a process needs to become a rank.

    Attributes:
        folder: the run folder, which all ranks share.
        job: text of job.yaml.
        generation: text of the present generation.
        pulse: file the ranks beat into.
        launcher: process that started the ranks, and without which they end.
        spent_s: seconds since the command began, by a clock that nobody sets; None: only the time of day tells.
        plugins: files with options of the job, each with its text, which runs in this process; empty: it has them.
    """

    folder: str
    job: str
    generation: str
    pulse: str
    launcher: int
    spent_s: float | None = None
    plugins: tuple[tuple[str, bytes], ...] = ()


def run_rank(ticket: Ticket, seat: Seat, store: dist.Store | None, screen: TextIO, stop: StopRequest) -> Outcome:
    """Train or evaluate as the rank of ``seat``; rank 0 shows it on ``screen`` and writes down how it ended.

    Raises:
        DmlError: what ended the run before its end.
    """
    folder = RunFolder(Path(ticket.folder))
    generation = read_generation(ticket.generation)
    plugins.unpack(ticket.plugins)
    job = read_job(ticket.job, str(folder.job))
    threads = pin_to_cores(seat)
    # threads divide sums, so their number, which follows that of the ranks here, would show in the last bits of a figure
    torch.set_num_threads(1 if generation.purpose == "evaluate" else threads)
    began = time.monotonic() - (max(0.0, time.time() - generation.began) if ticket.spent_s is None else ticket.spent_s)
    if job.run.train.max_hours is not None:
        stop.end_after(began + job.run.train.max_hours * 3600 - time.monotonic())
    with _world(seat, generation, store) as world:
        _meet(ticket, folder, seat, generation.layout.role(seat.rank), store)
        if generation.purpose == "evaluate":
            return _evaluate(ticket, folder, job, generation, world, stop)
        return _train(ticket, folder, job, generation, world, screen, stop, began)


@contextmanager
def _world(seat: Seat, generation: Generation, store: dist.Store | None) -> Iterator[World]:
    layout = generation.layout
    device = torch.device("cpu")
    if layout.device == "cuda" and layout.role(seat.rank) == "worker":
        device = torch.device("cuda", seat.local_rank)
        torch.cuda.set_device(device)
    if store is not None and not layout.lockstep:
        yield open_meeting(seat.rank, seat.size, device, store)
        return
    backend = layout.backend if layout.servers is None and not layout.helpers else "gloo"  # servers and helpers live in host memory
    world = open_world(seat.rank, seat.size, device, backend, store, GROUP_TIMEOUT)
    yield world
    close_world(world)


def _meet(ticket: Ticket, folder: RunFolder, seat: Seat, role: Role, store: dist.Store | None) -> None:
    """Every rank proves that it holds the same job; rank 0 writes down who is there."""
    entry = {"rank": seat.rank, "pid": os.getpid(), "host": socket.gethostname(), "generation": seat.generation, "role": role}
    proved = {**entry, "proof": proof(ticket.job, ticket.generation)}
    ranks = [proved] if store is None else roll_call(store, seat.rank, seat.size, proved)
    different = [str(other["rank"]) for other in ranks if other["proof"] != ranks[0]["proof"]]
    if different:
        raise LaunchError(
            Problem(f"rank {', '.join(different)}", "holds another job.yaml than rank 0", hint="all hosts must share the run folder")
        )
    if seat.rank == 0:
        write_json(folder.ranks, [{key: value for key, value in other.items() if key != "proof"} for other in ranks])


def _train(
    ticket: Ticket, folder: RunFolder, job: Job, generation: Generation, world: World, screen: TextIO, stop: StopRequest, began: float
) -> Outcome:
    run = job.run
    checkpoint = None if generation.resume is None else open_step(Path(generation.resume), hashing=False)
    progress = Progress() if checkpoint is None else Progress(**checkpoint.state)
    if checkpoint is not None and checkpoint.folder.parent != folder.checkpoints.resolve():
        progress.evaluated = progress.step  # the parent's steps have their rows in the parent
    ready = _ready(ticket, job, generation, world, stop, generation.pretrained if checkpoint is None else None)
    if checkpoint is not None:
        ready.engine.restore(checkpoint)
    with _tracked(folder, job, generation, progress, screen) if world.rank == 0 else nullcontext() as tracker:
        with _saver(folder, generation, world, run.checkpoint.keep) as saver:
            session = replace(ready, tracker=tracker, saver=saver, rescue=_rescue(ticket, folder, generation, ready, saver))
            loop = TrainLoop if generation.layout.lockstep else AsynchronousLoop
            with session.rescue or nullcontext():
                outcome = loop(session, progress).run()
        sample, step = _sample(session, outcome), last_step(session)
        if tracker is not None:
            _finish(session, outcome, folder, generation, tracker, began, sample, step)
    ready.engine.close()
    return outcome


def _saver(folder: RunFolder, generation: Generation, world: World, keep: int) -> AbstractContextManager[Saver | None]:
    """What this rank writes checkpoints with; one that writes no share has none."""
    mine, all_savers = generation.layout.saver(world.rank), generation.layout.savers
    return nullcontext() if mine is None else Saver(folder.checkpoints, mine, all_savers, generation.number, keep)


def _rescue(ticket: Ticket, folder: RunFolder, generation: Generation, ready: Session, saver: Saver | None) -> Rescue | None:
    """What saves copies of the last steps once a rank has died; None: there are none, or nobody would tell of a death."""
    copies = ready.engine.copies if isinstance(ready.engine, Serving | WorkerEngine) else None
    if copies is None or ticket.launcher == os.getpid():
        return None
    return Rescue(copies, folder.checkpoints, generation.layout, generation.number, ready.run.checkpoint.keep, ready.world, saver)


def _ready(ticket: Ticket, job: Job, generation: Generation, world: World, stop: StopRequest, pretrained: str | None) -> Session:
    """What this rank works with, its weights as they start; nothing is shown or kept yet."""
    run, layout = job.run, generation.layout
    return Session(
        run=run,
        layout=layout,
        facts=job.data,
        data=data.open_data(run.data, task_of(run.model), job.data, run.seed),
        engine=assemble(run, job.data, layout, world, pretrained),
        world=world,
        tracker=None,
        saver=None,
        stop=stop,
        pulse=Pulse(Path(ticket.pulse), world.rank, run.launcher.hang_floor_s),
    )


def _evaluate(ticket: Ticket, folder: RunFolder, job: Job, generation: Generation, world: World, stop: StopRequest) -> Outcome:
    """Evaluate a saved step on the whole held-out set; rank 0 leaves the figures where a summary would stand."""
    assert generation.resume is not None
    step = open_step(Path(generation.resume), hashing=False)
    session = _ready(ticket, job, generation, world, stop, None)
    session.engine.load_weights(step)
    session.pulse.begin(step.step)
    for name in metrics.names(job.run):
        metrics.build(name, 1)  # the first one imports torchmetrics, which is no part of evaluating
    began = time.monotonic()
    found = evaluate(session, None)
    session.engine.close()
    if isinstance(found, Reason):
        return Outcome(found, Progress(step.step), None, [])
    if world.rank == 0:
        write_json(folder.summary, {**found, "seconds": time.monotonic() - began})
    return Outcome(Reason.NONE, Progress(step.step), found, [])


@contextmanager
def _tracked(folder: RunFolder, job: Job, generation: Generation, progress: Progress, screen: TextIO) -> Iterator[tracking.Trackers]:
    """Rank 0's trackers; one that the run fails under still lets go of what it holds."""
    tracker = _tracker(folder, job, generation, progress, screen)
    try:
        yield tracker
    except BaseException:
        tracker.finish({"status": "failed", "steps": progress.step})
        raise


def _tracker(folder: RunFolder, job: Job, generation: Generation, progress: Progress, screen: TextIO) -> tracking.Trackers:
    run = job.run
    cut(folder.metrics, progress.step, progress.evaluated)
    console = tracking.Console(screen, run.name, generation.layout.steps, generation.layout.world_size)
    outside = tracking.build(run.tracker, folder.tracker, name=folder.path.name, run_id=job.id, config=job.tree, say=console.note)
    return tracking.Trackers([console, tracking.Jsonl(folder.metrics)], [outside] if outside is not None else [])


def _sample(session: Session, outcome: Outcome) -> str | None:
    """What the trained model writes, told by rank 0; all ranks that hold a part of one model write it together."""
    run, writes = session.run, session.layout.divided or session.tracker is not None
    completed = outcome.reason is Reason.NONE and run.train.sample_tokens and run.model.objective == "next_token"
    if not (writes and completed and isinstance(session.data, Written)):
        return None
    # a compiled model compiles again for what a text looks like
    session.pulse.allow(START_ALLOWANCE_S if run.train.compile else FINISH_ALLOWANCE_S + run.train.sample_tokens)
    context = context_of(run.model, session.facts)
    return write_text(session.engine, session.data, session.facts.vocabulary, context, run.train.sample_tokens, run.seed)


def _finish(
    session: Session,
    outcome: Outcome,
    folder: RunFolder,
    generation: Generation,
    tracker: tracking.Trackers,
    began: float,
    sample: str | None,
    step: Timeline | None,
) -> None:
    """Rank 0: what the run leaves behind."""
    completed = outcome.reason is Reason.NONE
    if sample is not None:
        tracker.note(f"\n{sample}\n")
    if step is not None:
        write_atomically(folder.schedule, drawn(session, step, generation.plan))
    measured = measure(session.layout, session.facts.sample_tokens, outcome.step_times_s, memory_bytes(session.world.device))
    summary = Summary(
        status="completed" if completed else "interrupted",
        steps=outcome.progress.step,
        final_loss=outcome.progress.loss,
        eval=outcome.evaluation,
        layout=asdict(session.layout),
        measured=measured if step is None else measured | {"bubble": step.idle_share},
        wall_s=time.monotonic() - began,
        resumed_from=generation.resume,
        restarts=generation.number,
        sample=sample,
    )
    summary.write(folder)
    session.pulse.allow(FINISH_ALLOWANCE_S)
    tracker.finish({**asdict(summary), "folder": str(folder.path)})
