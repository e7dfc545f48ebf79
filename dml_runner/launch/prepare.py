"""Everything between a request and its ranks: data -> layout -> plan -> folder -> job.yaml and generation."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dml_runner import data, metrics, tracking, validation
from dml_runner.errors import ConfigError, LaunchError, PlanError, Problem
from dml_runner.facts import DataFacts
from dml_runner.files import write_atomically
from dml_runner.generation import Generation, Purpose, generation_text, read_generation_file
from dml_runner.hardware.detect import GB, detect
from dml_runner.hardware.profile import Profile
from dml_runner.job import job_text, new_job, read_job_file
from dml_runner.launch.given import Given
from dml_runner.launch.pretrained import Found, check_pretrained
from dml_runner.launch.request import Request
from dml_runner.launch.start import Choice, Start, choose, is_finished
from dml_runner.layout import Batch, Layout, divide_batch
from dml_runner.planning.close import close, settle
from dml_runner.planning.plan import Plan, lay_out, make_plan
from dml_runner.planning.shape import measure
from dml_runner.pretrained import task_for
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


def plan_job(run: Run) -> tuple[Plan, Profile]:
    """Prepare the data and predict what the job costs on the machine of its words.

    Raises:
        ConfigError: the data is wrong, or does not go with the model.
        PlanError: the job cannot be laid out.
    """
    metrics.check(run)
    facts = data.prepare(run.data, task_for(run), Path(run.outputs) / "cache")
    profile = profile_of(run, None)
    layout = lay_out(run, facts, profile)
    model = measure(run, facts, layout)
    plan = make_plan(run, model, close(run, layout, model, profile), profile)
    return _told(plan, check_pretrained(run, facts)), profile


def _told(plan: Plan, weights: Found | None) -> Plan:
    """The plan, with a line of what the job starts from."""
    return plan if weights is None else replace(plan, warnings=(*plan.warnings, weights.notice))


def profile_of(run: Run, world: tuple[int, int] | None) -> Profile:
    """The machine of a job's words or, where a launcher from outside started ranks, with (nodes, devices a node) of its world.

    Raises:
        PlanError: more GPUs are asked for than one host has.
    """
    words = run.hardware
    if world is not None:
        words = words.model_copy(update={"nodes": world[0], "devices_per_node": world[1]})
    return detect(words)


def _lay_out(run: Run, facts: DataFacts, profile: Profile, batch: Batch | None) -> Layout:
    """The layout; a continued run keeps its global batch, bounded by the typed micro-batch, or else by the first start's."""
    if batch is None:
        return lay_out(run, facts, profile)
    try:
        free = lay_out(_with_batch(run, batch.global_batch, None), facts, profile)
    except PlanError as error:
        raise PlanError(*(_fixed(problem, batch.global_batch) for problem in error.problems)) from None
    if free.stages is not None:  # micro-batches are the schedule's there
        return free
    share = free.batch.micro_batch
    bound = run.train.micro_batch or batch.micro_batch
    micro = next(size for size in range(min(bound, share), 0, -1) if share % size == 0)
    return lay_out(_with_batch(run, batch.global_batch, micro), facts, profile)


def _fixed(problem: Problem, global_batch: int) -> Problem:
    """What to do where ranks do not divide a global batch that cannot be another."""
    if problem.key != "train.global_batch":
        return problem
    ranks = ", ".join(str(number) for number in range(1, min(global_batch, 1024) + 1) if global_batch % number == 0)
    return replace(problem, allowed=None, hint=f"the first start fixed it; data ranks that divide it: {ranks}")


def _with_batch(run: Run, global_batch: int, micro_batch: int | None) -> Run:
    words = {"global_batch": global_batch, "micro_batch": micro_batch, "accumulation": None}
    return run.model_copy(update={"train": run.train.model_copy(update=words)})


def prepare(request: Request, began: float, given: Given | None = None) -> Prepared | RunFolder:
    """Make a start ready, or return the folder of a completed run that there is nothing to do for.

    Raises:
        ConfigError: words, data, tracker or checkpoint are wrong, or the folder is in use.
        PlanError: the job does not fit or cannot be laid out.
        LaunchError: the launcher's world is not the one that was typed, or has ranks that the layout does not use.
    """
    run, folder = request.run, request.folder
    tracking.check(run.tracker)
    metrics.check(run)
    world = None if given is None else given.workers(run.strategy)
    refuse_other_world(request, world)
    if folder is not None and is_finished(folder) and _is_unchanged(request, folder):
        return folder
    kept = folder.path if folder is not None else None if run.run is None else Path(run.run)
    facts = data.prepare(run.data, task_for(run, kept), Path(run.outputs) / "cache")
    choice = choose(run, facts, folder, request.composed.typed)
    try:
        profile = profile_of(choice.run, world)
        layout = _lay_out(choice.run, facts, profile, choice.batch)
        refuse_idle_ranks(layout, None if given is None else given.size)
        _refuse_done(choice, layout)
        layout, model = settle(choice.run, facts, layout, profile)
        plan = make_plan(choice.run, model, layout, profile)
        _refuse_unfit(plan, profile)
        weights = check_pretrained(choice.run, facts) if choice.committed is None else None
        start = choice.open()
    except BaseException:
        choice.release()
        raise
    return _written(request, choice, start, facts, _told(plan, weights), began, None if weights is None else weights.path)


def _written(request: Request, choice: Choice, start: Start, facts: DataFacts, plan: Plan, began: float, weights: Path | None) -> Prepared:
    """Write job.yaml and keep the tokenizer, where the run is new, and write the generation."""
    try:
        tree = _tree(request, choice)
        start.folder.keep_tokenizer(facts.store)
        if start.job is None:
            job = new_job(choice.run, tree, facts)
            write_atomically(start.folder.job, job_text(job))
        else:
            job = replace(start.job, run=choice.run, tree=tree, data=facts)
        generation = next_generation(start.folder, plan.layout, plan, began, start.resume, tree, weights=weights)
    except BaseException:
        start.lock.release()
        raise
    start = replace(start, notices=(*start.notices, *_batch_notice(choice, plan.layout)))
    return Prepared(choice.run, start, plan.layout, plan, job_text(job), generation)


def refuse_other_world(request: Request, world: tuple[int, int] | None) -> None:
    """A launcher's world wins, but not over what the user typed.

    Raises:
        LaunchError: they differ.
    """
    if world is None:
        return
    for key, there in zip(("nodes", "devices_per_node"), world, strict=True):
        typed = getattr(request.run.hardware, key)
        if f"hardware.{key}" in request.composed.typed and typed != there:
            raise LaunchError(
                Problem(f"hardware.{key}", f"the launcher started {there}", got=str(typed), hint="leave it out, or start as many")
            )


def refuse_idle_ranks(layout: Layout, started: int | None) -> None:
    """What a launcher started must have work.

    Raises:
        LaunchError: the layout has fewer ranks, or more.
    """
    if started is not None and layout.world_size != started:
        raise LaunchError(
            Problem(
                "strategy",
                f"strategy={layout.strategy} has {layout.world_size} rank(s)",
                got=f"{started} that the launcher started",
                hint="start as many, or choose a strategy that uses them (strategy=all_reduce)",
            )
        )


def _is_unchanged(request: Request, folder: RunFolder) -> bool:
    """Whether the words of a completed run ask for what it did, at its first or at its last start."""
    last = read_generation_file(folder.generation(folder.next_generation() - 1))
    if request.run == read_job_file(folder.job).run:
        return True
    try:
        return request.run == validation.restore(last.config)
    except ConfigError:  # words of a version with other keys
        return False


def _refuse_done(choice: Choice, layout: Layout) -> None:
    """There must be something left to do; a run that is continued may lack its last evaluation alone."""
    first = choice.step + (1 if choice.folder is None else 0)
    if choice.committed is not None and layout.steps < first:
        what = f"step {choice.step}, which it continues from, is not before its last"
        raise ConfigError(Problem("train.steps", what, got=str(layout.steps), allowed=f"at least {first}"))


def _batch_notice(choice: Choice, layout: Layout) -> list[str]:
    """A line where the words alone would give another global batch than the one that is kept."""
    train, batch = choice.run.train, layout.batch
    try:
        free = divide_batch(train.global_batch, train.micro_batch, train.accumulation, batch.data_ranks)
    except PlanError:
        free = None
    if choice.batch is None or free == batch:
        return []
    parts = f"micro-batch {batch.micro_batch} x accumulation {batch.accumulation} x data ranks {batch.data_ranks}"
    return [f"the global batch stays {batch.global_batch}: {parts}"]


def _refuse_unfit(plan: Plan, profile: Profile) -> None:
    if not plan.fits:
        need, have = plan.memory_per_device_bytes / GB, profile.memory_bytes / GB
        raise PlanError(
            Problem(
                "hardware.memory_gb",
                f"{_listed([name.replace('optimizer', 'optimizer state') for name in plan.memory])} do not fit a device",
                got=f"{have:.1f} GB",
                allowed=f"at least {need:.1f} GB",
                hint="a smaller model, or more memory a device",
            )
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _tree(request: Request, choice: Choice) -> dict[str, Any]:
    """The words as they are written down, with the folder and the parent that were chosen."""
    tree, checkpoint = dict(request.composed.tree), request.composed.tree["checkpoint"]
    if choice.run != request.run:
        assert isinstance(checkpoint, dict)
        tree |= {"run": choice.run.run, "checkpoint": {**checkpoint, "resume": choice.run.checkpoint.resume}}
    return tree


def next_generation(
    folder: RunFolder,
    layout: Layout,
    plan: Plan,
    began: float,
    resume: Path | None,
    config: Mapping[str, Any] | None = None,
    purpose: Purpose = "train",
    weights: Path | None = None,
) -> Generation:
    """Write down the next start of a run, and return it; ``config`` None: its words, purpose and weights are those of the start before."""
    number = folder.next_generation()
    before = read_generation_file(folder.generation(number - 1)) if config is None else None
    generation = Generation(
        number=number,
        layout=layout,
        plan=plan.as_json(),
        hosts=(socket.gethostname(),),
        began=began,
        resume=None if resume is None else str(resume),
        config=before.config if before else config or {},
        purpose=before.purpose if before else purpose,
        pretrained=before.pretrained if before else None if weights is None else str(weights),
    )
    write_atomically(folder.generation(number), generation_text(generation))
    return generation
