"""Where a start begins: in a new run folder, in one that is continued, or in a fork of another run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dml_runner.checkpoint.newest import newest
from dml_runner.checkpoint.read import open_step
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.files import slug
from dml_runner.generation import read_generation
from dml_runner.job import Job, read_job_file
from dml_runner.launch.same_job import data_differences, differences, model_differences
from dml_runner.layout import Batch
from dml_runner.run import Run
from dml_runner.run_folder import Lock, RunFolder, named_folder, new_folder

KEY = "checkpoint.resume"


@dataclass(frozen=True)
class Start:
    """A folder that is this process's own, and what it holds already.

    Attributes:
        folder: the run folder, made and locked.
        lock: released when the command ends.
        job: the job.yaml that stands there; None in a new folder.
        batch: how the first start divided its batch; None for a new job.
        resume: step folder to continue from; None: from the beginning.
        notices: what people should know.
    """

    folder: RunFolder
    lock: Lock
    job: Job | None
    batch: Batch | None
    resume: Path | None
    notices: tuple[str, ...]


def choose_start(run: Run, data: DataFacts) -> Start:
    """Follow ``run`` and ``checkpoint.resume``.

    Raises:
        ConfigError: what should be continued is not there, is in use, completed, damaged or another job.
    """
    word = run.checkpoint.resume
    if word not in ("auto", "must", "never"):
        return fork(run, data, Path(word))
    if run.run is not None:
        return _in_named(run, data, RunFolder(Path(run.run)), word)
    if word != "never":
        found, notices = _find(run, data)
        if found is not None:
            return found
        if word == "must":
            where = Path(run.outputs) / "train"
            raise ConfigError(
                Problem(KEY, f"no unfinished run named {run.name!r} of this job in {where}", got="must", allowed="auto, to start anew")
            )
        return _fresh(new_folder(Path(run.outputs), run.name), notices)
    return _fresh(new_folder(Path(run.outputs), run.name), ())


def continue_folder(folder: RunFolder, run: Run, data: DataFacts) -> Start:
    """Continue the unfinished run of ``folder`` with the words ``run``.

    Raises:
        ConfigError: it is in use, damaged or another job.
    """
    job, batch = read_job_file(folder.job), first_batch(folder)
    changed = differences(job, batch.global_batch, run, data)
    if changed:
        raise ConfigError(
            Problem(KEY, f"{folder.path} is another job; the first differences follow", hint=f"to start from it: {KEY}={folder.path}"),
            *changed,
        )
    return _continued(folder, job, batch, ())


def fork(run: Run, data: DataFacts, origin: Path) -> Start:
    """A new run that continues from a run folder's newest sound step, or from the very step folder named.

    Raises:
        ConfigError: nothing is there to continue from, it is damaged, or of another model or data.
    """
    parent = RunFolder(origin.parent.parent if origin.parent.name == "checkpoints" else origin)
    if not parent.job.is_file():
        raise ConfigError(
            Problem(KEY, "no run folder and no step of one", got=str(origin), allowed="auto, must, never, a run folder, or a step in it")
        )
    notices: list[str] = []
    if parent.path == origin:
        committed, notices = newest(parent.checkpoints)
        if committed is None:
            raise ConfigError(Problem(KEY, "no step was saved there", got=str(origin)))
    else:
        committed = open_step(origin.resolve())
    before = read_job_file(parent.job)
    changed = [*data_differences(before, data), *model_differences(before.run, run)]
    if changed:
        raise ConfigError(Problem(KEY, f"{parent.path} has another model or other data; the first differences follow"), *changed[:10])
    batch = first_batch(parent) if run.train.global_batch is None else None
    path = run.run and named_folder(Path(run.run))
    start = _fresh(
        path or new_folder(Path(run.outputs), run.name), (*notices, f"continuing from step {committed.step} of {parent.path}, in a new run")
    )
    return Start(start.folder, start.lock, None, batch, committed.folder.resolve(), start.notices)


def first_batch(folder: RunFolder) -> Batch:
    """How the first start of a run divided its batch.

    Raises:
        ConfigError: the record of that start is missing or damaged.
    """
    path = folder.generation(0)
    try:
        return read_generation(path.read_text()).layout.batch
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(Problem(str(path), "missing or damaged", hint="it says how the run's batch is divided")) from error


def is_finished(folder: RunFolder) -> bool:
    """Whether the run of a folder completed."""
    summary = folder.read_summary()
    return summary is not None and summary.get("status") == "completed"


def _fresh(folder: RunFolder, notices: tuple[str, ...]) -> Start:
    lock = Lock(folder)
    lock.take_or_refuse()
    folder.create()
    return Start(folder, lock, None, None, None, notices)


def _in_named(run: Run, data: DataFacts, folder: RunFolder, word: str) -> Start:
    if not folder.job.is_file():
        if word == "must":
            raise ConfigError(Problem(KEY, "there is no run to continue", got=str(folder.path), allowed="auto, to start it"))
        return _fresh(named_folder(folder.path), ())
    if word == "never":
        raise ConfigError(
            Problem("run", "the folder holds a run", got=str(folder.path), allowed=f"a new folder, or {KEY}=auto to continue it")
        )
    if is_finished(folder):
        raise ConfigError(
            Problem("run", "the run is completed and is never touched", got=str(folder.path), hint=f"to go on from it: {KEY}={folder.path}")
        )
    return continue_folder(folder, run, data)


def _find(run: Run, data: DataFacts) -> tuple[Start | None, tuple[str, ...]]:
    """The newest unfinished run of the same name and job that no other process uses."""
    parent = Path(run.outputs) / "train"
    for path in sorted(parent.glob(f"*-{slug(run.name)}"), reverse=True):
        folder = RunFolder(path)
        if (
            not folder.job.is_file()
            or not folder.generation(0).is_file()
            or is_finished(folder)
            or path.name.split("-", 2)[-1] != slug(run.name)
        ):
            continue
        lock = Lock(folder)
        if not lock.take():
            continue
        lock.release()
        job, batch = read_job_file(folder.job), first_batch(folder)
        changed = differences(job, batch.global_batch, run, data)
        if not changed:
            return _continued(folder, job, batch, ()), ()
        only_data = list(data_differences(job, data))
        if len(only_data) == len(changed):
            hint = f"put the data back, or start anew with {KEY}=never"
            raise ConfigError(
                Problem(KEY, f"the data of the unfinished run {path} has changed; the first differences follow", hint=hint), *only_data
            )
        return None, (f"starting at step 0: the unfinished run {path} is another job ({changed[0]})",)
    return None, ()


def _continued(folder: RunFolder, job: Job, batch: Batch, notices: tuple[str, ...]) -> Start:
    lock = Lock(folder)
    lock.take_or_refuse()
    folder.create()
    committed, passed = newest(folder.checkpoints)
    step = 0 if committed is None else committed.step
    said = f"continuing {folder.path} from step {step}" + ("" if committed else ": nothing was saved yet")
    return Start(folder, lock, job, batch, committed.folder.resolve() if committed else None, (*notices, *passed, said))
