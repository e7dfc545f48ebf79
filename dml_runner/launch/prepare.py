"""Everything between a request and its ranks: data -> layout -> plan -> folder -> job.yaml and generation."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from dml_runner import data, tracking
from dml_runner.errors import LaunchError, PlanError, Problem
from dml_runner.facts import DataFacts
from dml_runner.files import write_atomically
from dml_runner.generation import Generation, generation_text
from dml_runner.hardware.detect import GB, detect
from dml_runner.hardware.profile import Profile
from dml_runner.job import job_text, new_job, read_job_file
from dml_runner.launch.request import Request
from dml_runner.launch.start import Start, choose_start, continue_folder, fork, is_finished
from dml_runner.layout import Batch, Layout
from dml_runner.planning.plan import Plan, lay_out, make_plan
from dml_runner.planning.shape import measure
from dml_runner.run import Run
from dml_runner.run_folder import RunFolder


@dataclass(frozen=True)
class Prepared:
    """A start about to happen: its folder, and the texts every rank gets."""

    run: Run
    start: Start
    layout: Layout
    plan: Plan
    job: str
    generation: Generation


def plan_job(run: Run, world: tuple[int, int] | None = None, batch: Batch | None = None) -> tuple[DataFacts, Plan, Profile]:
    """Prepare the data and predict what the job costs.

    Args:
        world: (nodes, devices a node) of a launcher from outside, in place of the hardware words.
        batch: how an earlier start divided the batch, where there was one.

    Raises:
        ConfigError: the data is wrong, or does not go with the model.
        PlanError: the job cannot be laid out.
    """
    facts = data.prepare(run.data, run.model.context, Path(run.outputs) / "cache")
    profile = _profile(run, world)
    layout = _lay_out(run, facts, profile, batch)
    return facts, make_plan(run, measure(run, facts), layout, profile), profile


def _profile(run: Run, world: tuple[int, int] | None) -> Profile:
    words = run.hardware
    if world is not None:
        words = words.model_copy(update={"nodes": world[0], "devices_per_node": world[1]})
    return detect(words)


def _lay_out(run: Run, facts: DataFacts, profile: Profile, batch: Batch | None) -> Layout:
    """The layout; a continued run keeps its global batch, and a typed micro-batch is an upper bound then."""
    if batch is None:
        return lay_out(run, facts, profile)
    free = lay_out(_with_batch(run, batch.global_batch, None), facts, profile)
    share = free.batch.micro_batch
    bound = run.train.micro_batch or (batch.micro_batch if batch.data_ranks == free.batch.data_ranks else share)
    micro = next(size for size in range(min(bound, share), 0, -1) if share % size == 0)
    return lay_out(_with_batch(run, batch.global_batch, micro), facts, profile)


def _with_batch(run: Run, global_batch: int, micro_batch: int | None) -> Run:
    words = {"global_batch": global_batch, "micro_batch": micro_batch, "accumulation": None}
    return run.model_copy(update={"train": run.train.model_copy(update=words)})


def prepare(request: Request, began: float, world: tuple[int, int] | None = None) -> Prepared | RunFolder:
    """Make a start ready, or return the folder of a completed run that there is nothing to do for.

    Raises:
        ConfigError: words, data, tracker or checkpoint are wrong, or the folder is in use.
        PlanError: the job does not fit or cannot be laid out.
        LaunchError: another world was typed than the launcher's.
    """
    run, folder = request.run, request.folder
    tracking.check(run.tracker)
    _refuse_other_world(request, world)
    if folder is not None and is_finished(folder) and _is_unchanged(request, folder):
        return folder
    facts = data.prepare(run.data, run.model.context, Path(run.outputs) / "cache")
    profile = _profile(run, world)
    first = _lay_out(run, facts, profile, None) if folder is None else None
    model = measure(run, facts)
    if first is not None:
        _refuse_unfit(make_plan(run, model, first, profile), profile)
    start = _start(request, facts)
    try:
        layout = first if start.batch is None and first is not None else _lay_out(run, facts, profile, start.batch)
        plan = make_plan(run, model, layout, profile)
        _refuse_unfit(plan, profile)
        job = _write_job(request, start, facts)
        generation = next_generation(start.folder, layout, plan, began, start.resume)
    except BaseException:
        start.lock.release()
        raise
    return Prepared(run, start, layout, plan, job, generation)


def _refuse_other_world(request: Request, world: tuple[int, int] | None) -> None:
    """A launcher's world wins, but not over what the user typed."""
    if world is None:
        return
    for key, there in zip(("nodes", "devices_per_node"), world, strict=True):
        typed = getattr(request.run.hardware, key)
        if f"hardware.{key}" in request.composed.typed and typed != there:
            raise LaunchError(
                Problem(f"hardware.{key}", f"the launcher started {there}", got=str(typed), hint="leave it out, or start as many")
            )


def _is_unchanged(request: Request, folder: RunFolder) -> bool:
    return request.run == read_job_file(folder.job).run


def _start(request: Request, facts: DataFacts) -> Start:
    if request.folder is None:
        return choose_start(request.run, facts)
    if is_finished(request.folder):
        own = request.run.model_copy(update={"run": None})
        return fork(own, facts, request.folder.path)
    return continue_folder(request.folder, request.run, facts)


def _refuse_unfit(plan: Plan, profile: Profile) -> None:
    if not plan.fits:
        need, have = plan.memory_per_device_bytes / GB, profile.memory_bytes / GB
        raise PlanError(
            Problem(
                "hardware.memory_gb",
                "weights, gradients and optimizer state do not fit a device",
                got=f"{have:.1f} GB",
                allowed=f"at least {need:.1f} GB",
                hint="a smaller model, or more memory a device",
            )
        )


def _write_job(request: Request, start: Start, facts: DataFacts) -> str:
    if start.job is not None:
        return start.folder.job.read_text()
    text = job_text(new_job(request.run, request.composed.tree, facts))
    write_atomically(start.folder.job, text)
    return text


def next_generation(folder: RunFolder, layout: Layout, plan: Plan, began: float, resume: Path | None) -> Generation:
    """Write down the next start of a run, and return it."""
    generation = Generation(
        number=folder.next_generation(),
        layout=layout,
        plan=plan.as_json(),
        hosts=(socket.gethostname(),),
        began=began,
        resume=None if resume is None else str(resume),
    )
    write_atomically(folder.generation(generation.number), generation_text(generation))
    return generation
