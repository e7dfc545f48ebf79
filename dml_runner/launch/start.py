"""Where a start begins: in a new run folder, in one that is continued, or in a fork of another run."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dml_runner import plugins
from dml_runner.checkpoint.newest import newest
from dml_runner.checkpoint.read import Committed, open_step
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.files import slug
from dml_runner.generation import read_generation_file
from dml_runner.job import Job, read_job_file
from dml_runner.launch.same_job import SHOWN, batch_differences, data_differences, differences, model_differences, tensor_differences
from dml_runner.layout import Batch
from dml_runner.run import Run
from dml_runner.run_folder import Lock, RunFolder, named_folder, new_folder

KEY = "checkpoint.resume"
WORDS = ("auto", "must", "never")


@dataclass(frozen=True)
class Start:
    """A folder that is this process's own, and what it holds already.

    Attributes:
        folder: the run folder, made and locked.
        lock: released when the command ends.
        job: the job.yaml that stands there; None in a new folder.
        resume: step folder to continue from; None: from the beginning.
        notices: what people should know.
    """

    folder: RunFolder
    lock: Lock
    job: Job | None
    resume: Path | None
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """Where a start is going to begin; nothing is made yet, and of a run that is continued only the lock is held.

    Attributes:
        run: the words, with the folder and the parent that were chosen.
        folder: the run that is continued; None: a new one.
        lock: of that run.
        job: its job.yaml.
        batch: how the run's, or its parent's, first start divided its batch; None: as the words say.
        committed: the step to continue from; None: from the beginning.
        notices: what people should know.
    """

    run: Run
    folder: RunFolder | None = None
    lock: Lock | None = None
    job: Job | None = None
    batch: Batch | None = None
    committed: Committed | None = None
    notices: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Number of the update that the start continues after."""
        return 0 if self.committed is None else self.committed.step

    def open(self) -> Start:
        """Make the folder, where it is new, and keep others out of it.

        Raises:
            ConfigError: it cannot be made, holds something else, or another process was faster.
        """
        folder, lock = self.folder, self.lock
        if folder is None or lock is None:
            folder = new_folder(Path(self.run.outputs), self.run.name) if self.run.run is None else named_folder(Path(self.run.run))
            lock = Lock(folder)
            lock.take_or_refuse()
            if folder.job.is_file():
                lock.release()
                raise ConfigError(Problem("run", "another process has just started a run there", got=str(folder.path)))
        folder.create()
        return Start(folder, lock, self.job, self.committed.folder if self.committed else None, self.notices)

    def release(self) -> None:
        """Let others have the run that would have been continued."""
        if self.lock is not None:
            self.lock.release()


def choose(run: Run, data: DataFacts, operand: RunFolder | None = None, typed: Collection[str] = ()) -> Choice:
    """Follow ``run``, ``checkpoint.resume`` and the run folder that stood before the words, if one did.

    Args:
        operand: that run folder.
        typed: the keys that were typed besides it.

    Raises:
        ConfigError: what should be continued is not there, is in use, completed, damaged or another job.
    """
    if operand is not None:
        return _from_operand(run, data, operand, typed)
    word = run.checkpoint.resume
    if run.run is not None and RunFolder(Path(run.run)).job.is_file():
        return _in_named(run, data, RunFolder(Path(run.run)))
    if word not in WORDS:
        return fork(run, data, Path(word))
    if run.run is not None and word == "must":
        raise ConfigError(Problem(KEY, "there is no run to continue", got=run.run, allowed="auto, to start it"))
    return Choice(run) if run.run is not None or word == "never" else _search(run, data)


def continue_folder(folder: RunFolder, run: Run, data: DataFacts) -> Choice:
    """Continue the unfinished run of ``folder`` with the words ``run``.

    Raises:
        ConfigError: it is in use, damaged or another job.
    """
    lock = Lock(folder)
    lock.take_or_refuse()
    with _released_on_error(lock):
        changed = differences(read_job_file(folder.job), first_batch(folder), run, data)
        if changed:
            what, hint = f"{folder.path} is another job; the first differences follow", f"to start from it: {KEY}={folder.path}"
            raise ConfigError(Problem(KEY, what, hint=hint), *changed)
        return _continued(folder, lock, run, data)


def fork(run: Run, data: DataFacts, origin: Path) -> Choice:
    """A new run that continues from a run folder's newest sound step, or from the very step folder named.

    Raises:
        ConfigError: nothing is there to continue from, it is damaged, or of another model or data.
    """
    path = Path(os.path.abspath(origin))
    parent = RunFolder(path.parent.parent if path.parent.name == "checkpoints" else path)
    if not parent.job.is_file():
        allowed = "auto, must, never, a run folder, or a step in it"
        raise ConfigError(Problem(KEY, "no run folder and no step of one", got=str(origin), allowed=allowed))
    notices: list[str] = []
    if parent.path == path:
        committed, notices = last_commit(parent)
        if committed is None:
            raise ConfigError(Problem(KEY, "no step was saved there", got=str(origin)))
    else:
        committed = open_step(path)
    before = read_job_file(parent.job)
    changed = [*data_differences(before, data), *model_differences(before.run, run)] or tensor_differences(committed, run, data)
    if changed:
        what = f"{parent.path} has another model, optimizer or other data; the first differences follow"
        raise ConfigError(Problem(KEY, what), *changed[:SHOWN])
    first = first_batch(parent)
    batch = None if any(batch_differences(before.run, first, run)) else first
    said = (f"continuing from step {committed.step} of {parent.path}, in a new run", *plugins.changes(before.plugins))
    return Choice(run, batch=batch, committed=committed, notices=(*notices, *said))


def last_commit(folder: RunFolder) -> tuple[Committed | None, list[str]]:
    """The newest sound step of a run, or, where a fork saved none yet, the step it began from; and what was passed over.

    Raises:
        ConfigError: there are steps, and none is sound.
    """
    committed, notices = newest(folder.checkpoints)
    origin = read_generation_file(folder.generation(0)).resume if committed is None else None
    return (open_step(Path(origin)) if origin else committed), notices


def first_batch(folder: RunFolder) -> Batch:
    """How the first start of a run divided its batch.

    Raises:
        ConfigError: the record of that start is missing or damaged.
    """
    return read_generation_file(folder.generation(0)).layout.batch


def is_finished(folder: RunFolder) -> bool:
    """Whether the run of a folder completed."""
    summary = folder.read_summary()
    return summary is not None and summary.get("status") == "completed"


def _from_operand(run: Run, data: DataFacts, folder: RunFolder, typed: Collection[str]) -> Choice:
    """A run folder stood before the words: continue it, or start a new run with its words."""
    word = run.checkpoint.resume if KEY in typed else "auto"
    if word in ("auto", "must") and not is_finished(folder):
        if "run" in typed:
            raise ConfigError(Problem("run", f"{folder.path} is unfinished and goes on where it is", got=str(run.run), allowed="left out"))
        return continue_folder(folder, run, data)
    origin = {"auto": str(folder.path), "must": str(folder.path)}.get(word, word)
    checkpoint = run.checkpoint.model_copy(update={"resume": origin})
    own = run.model_copy(update={"run": run.run if "run" in typed else None, "checkpoint": checkpoint})
    return Choice(own) if word == "never" else fork(own, data, Path(origin))


def _in_named(run: Run, data: DataFacts, folder: RunFolder) -> Choice:
    """``run=`` names a folder that holds a run: it is continued, or nothing happens."""
    word = run.checkpoint.resume
    if word == "never":
        allowed = f"a new folder, or {KEY}=auto to continue it"
        raise ConfigError(Problem("run", "the folder holds a run", got=str(folder.path), allowed=allowed))
    if is_finished(folder):
        hint = f"to go on from it: dml train {folder.path} train.steps=..."
        raise ConfigError(Problem("run", "the run is completed and is never touched", got=str(folder.path), hint=hint))
    if word not in WORDS and read_job_file(folder.job).run.checkpoint.resume != word:
        raise ConfigError(Problem("run", f"the folder holds a run that did not begin from {word}", got=str(folder.path)))
    return continue_folder(folder, run, data)


def _search(run: Run, data: DataFacts) -> Choice:
    """The newest unfinished run of the same name and job that no other process uses, or else a new one.

    Raises:
        ConfigError: only the data of such a run has changed, all its steps are damaged, or there is none and there must be.
    """
    passed: list[str] = []
    only_data: tuple[RunFolder, list[Problem]] | None = None
    for folder in _unfinished(run):
        lock = Lock(folder)
        if not lock.take():
            passed.append(f"{folder.path} is in use by another process")
            continue
        with _released_on_error(lock):
            changed, data_alone = _differences(folder, run, data)
            if not changed:
                return _continued(folder, lock, run, data)
        lock.release()
        passed.append(f"{folder.path} is another job ({changed[0]})")
        if data_alone and only_data is None:
            only_data = folder, changed
    if only_data is not None:
        what = f"the data of the unfinished run {only_data[0].path} has changed; the first differences follow"
        raise ConfigError(Problem(KEY, what, hint=f"put the data back, or start anew with {KEY}=never"), *only_data[1])
    if run.checkpoint.resume == "must":
        what = f"no unfinished run named {run.name!r} of this job in {Path(run.outputs) / 'train'}"
        raise ConfigError(Problem(KEY, what, got="must", allowed="auto, to start anew", hint=passed[0] if passed else None))
    return Choice(run, notices=tuple(f"starting at step 0: the unfinished run {line}" for line in passed))


def _unfinished(run: Run) -> Iterator[RunFolder]:
    """Runs of the same name that began and did not complete, the newest first."""
    for path in sorted((Path(run.outputs) / "train").glob(f"*-{slug(run.name)}"), reverse=True):
        folder = RunFolder(path)
        named = path.name.split("-", 2)[-1] == slug(run.name)
        if named and folder.job.is_file() and folder.generation(0).is_file() and not is_finished(folder):
            yield folder


def _differences(folder: RunFolder, run: Run, data: DataFacts) -> tuple[list[Problem], bool]:
    """What makes a run another job (so does a job.yaml that cannot be read), and whether that is its data alone."""
    try:
        job = read_job_file(folder.job)
        found = differences(job, first_batch(folder), run, data)
    except ConfigError as error:
        return list(error.problems), False
    return found, found == list(data_differences(job, data))[:SHOWN]


@contextmanager
def _released_on_error(lock: Lock) -> Iterator[None]:
    try:
        yield
    except BaseException:
        lock.release()
        raise


def _continued(folder: RunFolder, lock: Lock, run: Run, data: DataFacts) -> Choice:
    """Continue a run that is the same job and whose lock is held."""
    committed, passed = last_commit(folder)
    changed = tensor_differences(committed, run, data) if committed is not None else []
    if changed:
        raise ConfigError(*changed)
    step = 0 if committed is None else committed.step
    job = read_job_file(folder.job)
    said = f"continuing {folder.path} from step {step}" + ("" if committed else ": nothing was saved yet")
    notices = (*passed, said, *plugins.changes(job.plugins))
    return Choice(run, folder, lock, job, first_batch(folder), committed, notices)
