"""An evaluation about to start: a saved step, held-out data in the run's own tokens and labels, and a folder under RUN/eval."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dml_runner import data
from dml_runner.checkpoint.names import step_name, step_of
from dml_runner.checkpoint.read import open_step
from dml_runner.checkpoint.tidy import step_folders
from dml_runner.errors import ConfigError, Problem, raise_all
from dml_runner.facts import DataFacts, task_of
from dml_runner.files import write_atomically, write_json
from dml_runner.generation import read_generation_file
from dml_runner.job import job_text, new_job, read_job_file
from dml_runner.launch.eval_words import run_folder_of
from dml_runner.launch.prepare import Prepared, next_generation, profile_of, refuse_idle_ranks, refuse_other_world
from dml_runner.launch.request import Request
from dml_runner.launch.same_job import data_differences, labels_told
from dml_runner.launch.start import Start
from dml_runner.launch.trained import Trained, find
from dml_runner.layout import Layout, for_evaluation
from dml_runner.planning.close import settle
from dml_runner.planning.plan import lay_out, make_plan
from dml_runner.pretrained import tokenizer_of
from dml_runner.run import Run
from dml_runner.run_folder import Lock, RunFolder
from dml_runner.schema.data import Synthetic

ENDLESS = 2**62
"""Training samples for the layout's sake: an evaluation has no global batch that they must fill."""
TRIES = 20
"""Steps in a row that a run may take away while they are looked at."""


def prepare(request: Request, path: Path, own_data: bool, began: float, world: tuple[int, int] | None = None) -> Prepared:
    """Make an evaluation ready: its ranks get a run folder of its own, so that nothing of the run's is touched.

    Args:
        request: the run's words, with those of the evaluation.
        path: the run folder, or a step folder in it.
        own_data: whether the data is the run's own.
        began: when the command began, in seconds since 1970.
        world: (nodes, devices a node) where a launcher from outside started the ranks.

    Raises:
        ConfigError: no sound step is there, or the data is wrong, or not what the model was trained for.
        PlanError: it cannot be laid out.
        LaunchError: the launcher's world is not the one that was typed, or has ranks that the layout does not use.
    """
    refuse_other_world(request, world)
    folder = RunFolder(run_folder_of(path))
    work = _new_folder(folder)
    try:
        trained, step = _hold(path, folder, work)
        facts, notices = _facts(request.run, trained, own_data)
        return _written(request, trained, step, work, facts, notices, began, world)
    except BaseException:
        shutil.rmtree(work.path, ignore_errors=True)
        raise


def _facts(run: Run, trained: Trained, own_data: bool) -> tuple[DataFacts, tuple[str, ...]]:
    """What the held-out data is, in the tokens and labels the model has learned; and whether the run's own has changed."""
    before, task = trained.job, task_of(run.model, tokenizer_of(trained.folder.path))
    found = data.prepare(run.data, task, Path(run.outputs) / "cache")
    raise_all(_other_data(run, before.data, found))
    changed = data_differences(before, found) if own_data else ()
    notices = tuple(f"the data is no longer what the run was trained on: {problem}" for problem in changed)
    own = before.data
    return replace(found, vocabulary=own.vocabulary, classes=own.classes, labels=own.labels), notices


def _written(
    request: Request,
    trained: Trained,
    step: Path,
    work: RunFolder,
    facts: DataFacts,
    notices: tuple[str, ...],
    began: float,
    world: tuple[int, int] | None,
) -> Prepared:
    """Lay the evaluation out, and write down what its ranks read."""
    run = request.run
    profile = profile_of(run, world)
    layout = for_evaluation(lay_out(run, replace(facts, train_samples=ENDLESS), profile))
    layout, model = settle(run, facts, layout, profile)
    refuse_idle_ranks(layout, None if world is None else world[0] * world[1])
    plan = make_plan(run, model, layout, profile)
    job = job_text(new_job(run, request.composed.tree, facts))
    write_atomically(work.job, job)
    generation = next_generation(work, layout, plan, began, step, request.composed.tree, "evaluate")
    said = (*trained.notices, *notices, *plan.surprises, _headline(trained, layout))
    return Prepared(run, Start(work, Lock(work), None, step, said), layout, plan, job, generation)


def _other_data(run: Run, trained: DataFacts, found: DataFacts) -> Iterator[Problem]:
    """What the model cannot be asked, because it learned something else; made-up data may have fewer tokens and labels."""
    if found.kind != trained.kind:
        yield Problem("data", "of another kind than the run's", got=found.kind.replace("_", " "), allowed=trained.kind.replace("_", " "))
        return
    if found.image != trained.image:
        yield Problem("data", "images of another shape than the run's", got=_shape(found.image), allowed=_shape(trained.image))
    made_up = isinstance(run.data, Synthetic)
    if _is_other(found.vocabulary, trained.vocabulary, made_up):
        yield Problem("data", "other tokens than the run's", got=str(found.vocabulary), allowed=str(trained.vocabulary))
    if found.labels and trained.labels:
        if found.labels != trained.labels:
            got, allowed = labels_told(found.labels, trained.labels), labels_told(trained.labels, found.labels)
            yield Problem("data", "other labels than the run's, or in another order", got, allowed)
    elif _is_other(found.classes, trained.classes, made_up):
        yield Problem("data", "other labels than the run's", got=str(found.classes), allowed=str(trained.classes))


def _is_other(mine: int, own: int, made_up: bool) -> bool:
    return mine > own or (mine < own and not made_up)


def _headline(trained: Trained, layout: Layout) -> str:
    ranks = "1 rank" if layout.world_size == 1 else f"{layout.world_size} ranks"
    return f"{trained.folder.path}: step {trained.step.step} on {ranks} ({layout.device}, {layout.precision})"


def _shape(image: tuple[int, ...]) -> str:
    return " x ".join(map(str, image))


def _new_folder(run: RunFolder) -> RunFolder:
    """A new folder ``RUN/eval/<time>``, whose name no result has yet."""
    room = run.path / "eval"
    try:
        room.mkdir(exist_ok=True)
        for attempt in range(1, 1000):
            path = room / (time.strftime("%Y%m%d-%H%M%S") + (f".{attempt}" if attempt > 1 else ""))
            try:
                path.mkdir()
            except FileExistsError:
                continue
            if not _result(path).exists():
                RunFolder(path).create()
                return RunFolder(path)
            path.rmdir()
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise ConfigError(Problem("run", what, got=str(room), allowed="a run folder you may write")) from error
    raise ConfigError(Problem("run", "too many evaluations in one second", got=str(room)))


def _result(work: Path) -> Path:
    return work.with_name(f"{work.name}.json")


def _hold(path: Path, folder: RunFolder, work: RunFolder) -> tuple[Trained, Path]:
    """The step, and where it stands under a second name: a run that still trains might take it away before the ranks have read it."""
    for attempt in range(1, TRIES + 1):
        before = set(step_folders(folder.checkpoints))
        try:
            trained = find(path)
            return trained, _link(trained.step.folder, trained.step.step, work)
        except ConfigError:
            if attempt == TRIES or set(step_folders(folder.checkpoints)) == before:
                raise
    raise AssertionError("a last try returns or raises")


def _link(step: Path, number: int, work: RunFolder) -> Path:
    """The step's files linked into the evaluation's folder; where links are not to be had, the step itself.

    Raises:
        ConfigError: it is gone.
    """
    held = work.checkpoints / step_name(number)
    held.mkdir()
    try:
        for file in step.iterdir():
            os.link(file, held / file.name)
        open_step(held, hashing=False)
    except (OSError, ConfigError) as error:
        shutil.rmtree(held, ignore_errors=True)
        open_step(step, hashing=False)
        if isinstance(error, ConfigError):
            raise
        return step
    return held


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        step: number of the update after which the weights were saved.
        figures: ``eval_loss``, ``eval_samples``, ``perplexity`` of a language model, and ``eval_<name>`` of each metric.
        seconds: what evaluating took, starting and loading left out.
        file: where all of it is written.
    """

    step: int
    figures: dict[str, Any]
    seconds: float
    file: Path


def collect(work: RunFolder) -> Result:
    """Write ``RUN/eval/<time>.json`` from what the ranks left in the evaluation's folder, and remove that."""
    job, generation = read_job_file(work.job), read_generation_file(work.generation(work.next_generation() - 1))
    step = step_of(Path(generation.resume or "").name)
    assert step is not None
    figures: dict[str, Any] = json.loads(work.summary.read_text())
    seconds: float = figures.pop("seconds")
    if job.run.model.objective != "classify" and figures["eval_loss"] < math.log(sys.float_info.max):
        figures["perplexity"] = math.exp(figures["eval_loss"])
    about = yaml.safe_load(work.job.read_text())
    content = {
        "run": str(work.path.parent.parent),
        "step": step,
        "figures": figures,
        "data": {"config": about["config"]["data"], "samples": job.data.eval_samples, "digests": about["data"]["digests"]},
        "layout": asdict(generation.layout),
        "seconds": seconds,
        "wall_s": time.time() - generation.began,
        "versions": dict(job.versions),
    }
    write_json(_result(work.path), content)
    shutil.rmtree(work.path, ignore_errors=True)
    return Result(step, figures, seconds, _result(work.path))
