"""job.yaml, the intent of a run, written once and read by every rank."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.files import digest_text
from dml_runner.run import Run
from dml_runner.validation import restore

FORMAT = 1


@dataclass(frozen=True)
class Job:
    """What a run set out to do.

    Attributes:
        run: the validated words.
        tree: the same as written: everything resolved but what comes from the environment, which stays a reference.
        data: facts of the prepared data.
        versions: of Python, torch and this package, at the first start.
        git: revision of the folder the job was started from, or None.
    """

    run: Run
    tree: Mapping[str, Any]
    data: DataFacts
    versions: Mapping[str, str]
    git: str | None


def new_job(run: Run, tree: Mapping[str, Any], data: DataFacts) -> Job:
    """A job about to start here."""
    return Job(run, tree, data, versions(), _git_revision())


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    import torch

    from dml_runner import __version__

    return {"python": platform.python_version(), "torch": str(torch.__version__), "dml_runner": __version__}


def _git_revision() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def job_text(job: Job) -> str:
    """The text of job.yaml."""
    content = {
        "format": FORMAT,
        "config": dict(job.tree),
        "data": {**asdict(job.data), "digests": dict(job.data.digests)},
        "versions": dict(job.versions),
        "git": job.git,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def read_job(text: str, origin: str) -> Job:
    """The job that ``text``, read from ``origin``, describes; references to the environment are resolved here.

    Raises:
        ConfigError: it is no job.yaml of this version, or its words are no longer valid.
    """
    try:
        content = yaml.safe_load(text)
        if content["format"] != FORMAT:
            raise ConfigError(Problem(origin, "written by another version", got=f"format {content['format']}", allowed=f"format {FORMAT}"))
        tree, data, found, git = content["config"], DataFacts(**content["data"]), content["versions"], content["git"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(Problem(origin, "not a job.yaml", got=type(error).__name__, hint="the file is damaged")) from error
    return Job(restore(tree), tree, data, found, git)


def read_job_file(path: Path) -> Job:
    """The job of a run folder's job.yaml.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {error.strerror}", hint="a run folder holds a job.yaml")) from error
    return read_job(text, str(path))


def proof(job: str, generation: str) -> str:
    """What every rank must compute from the texts it was given: equal on all, or they are not in the same job."""
    return digest_text(job + "\0" + generation)
