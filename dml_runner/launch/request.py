"""Request: what the words of a command ask for. No torch is imported here, so that a typo is refused at once."""

from __future__ import annotations

import multiprocessing.forkserver
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dml_runner import config
from dml_runner.config import Composed
from dml_runner.errors import ConfigError, Problem
from dml_runner.hardware.detect import has_gpus
from dml_runner.job import read_job_file
from dml_runner.run import Run
from dml_runner.run_folder import RunFolder


@dataclass(frozen=True)
class Request:
    """A job, and the run folder it was read from, if it was."""

    composed: Composed
    folder: RunFolder | None

    @property
    def run(self) -> Run:
        """The job."""
        return self.composed.run


def read_words(words: Sequence[str]) -> Request:
    """``[FILE.yaml or RUN folder] words``: the job they describe.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    if words and "=" not in words[0] and Path(words[0]).is_dir():
        folder = _operand(Path(words[0]))
        config.load_plugins(words[1:])
        return Request(config.recompose(read_job_file(folder.job).tree, words[1:]), folder)
    return Request(config.compose(words), None)


def _operand(path: Path) -> RunFolder:
    whole = path.resolve() if path.name in ("", "..") else path
    if whole.resolve().parent.name == "checkpoints" and not (whole / "job.yaml").exists():
        run = whole.resolve().parent.parent
        hint = f"dml train {run} continues the run; checkpoint.resume={path} starts a new one from this step"
        raise ConfigError(Problem(str(path), "is a step, not a run", allowed="a run folder", hint=hint))
    return RunFolder(whole)


def may_have_ranks(run: Run) -> bool:
    """Whether more than one rank may be started; what ``hardware=auto`` finds is not known yet."""
    words = run.hardware
    several = words.nodes * (words.devices_per_node or 1) > 1 or (words.name == "auto" and words.devices_per_node is None and has_gpus())
    return run.strategy.name != "single" and several


def preload() -> None:
    """Start, in the background and unless it runs, the process that ranks are forked from; it imports what a rank needs, once."""
    multiprocessing.forkserver.set_forkserver_preload(["dml_runner.launch.nursery"])
    with main_left_out():
        multiprocessing.forkserver.ensure_running()


@contextmanager
def main_left_out() -> Iterator[None]:
    """Keep started processes from importing the user's main module again: ranks need nothing of it."""
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in kept:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)
