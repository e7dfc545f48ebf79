"""job.yaml, the intent of a run, written once and read by every rank."""

from __future__ import annotations

import os
import platform
import re
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from dml_runner import plugins
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.files import digest_text
from dml_runner.plugins import Source
from dml_runner.run import Run
from dml_runner.validation import restore

FORMAT = 1
MAX_CHARACTERS = 10**6
MAX_DEPTH = 32


@dataclass(frozen=True)
class Job:
    """What a run set out to do.

    Attributes:
        run: the validated words.
        tree: the same as written: everything resolved but what comes from the environment, which stays a reference.
        plugins: where the options come from that are not ours.
        data: facts of the prepared data.
        versions: of Python, torch and this package, at the first start.
        git: revision of the folder the job was started from, or None.
        id: this run's alone, for trackers outside.
    """

    run: Run
    tree: Mapping[str, Any]
    plugins: tuple[Source, ...]
    data: DataFacts
    versions: Mapping[str, str]
    git: str | None
    id: str


class _Plain(yaml.SafeDumper):
    """Writes a value as often as it stands, never as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """True: none."""
        return True


def new_job(run: Run, tree: Mapping[str, Any], data: DataFacts) -> Job:
    """A job about to start here."""
    return Job(run, tree, plugins.used(run), data, versions(), _git_revision(), secrets.token_hex(4))


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
    digests = {_as_reference(name, job.tree): sha for name, sha in job.data.digests.items()}
    content = {
        "format": FORMAT,
        "id": job.id,
        "config": dict(job.tree),
        "plugins": [{**asdict(source), "options": list(source.options)} for source in job.plugins],
        "data": {**asdict(job.data), "image": list(job.data.image), "digests": digests, "labels": list(job.data.labels)},
        "versions": dict(job.versions),
        "git": job.git,
    }
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True)


def _as_reference(name: str, tree: Mapping[str, Any]) -> str:
    """The name of a source, without what its path took from the environment."""
    for variable in re.findall(r"\$\{oc\.env:\s*([A-Za-z_]\w*)", repr(tree.get("data"))):
        if os.environ.get(variable):
            name = name.replace(os.environ[variable], f"${{oc.env:{variable}}}")
    return name


def read_job(text: str, origin: str) -> Job:
    """The job that ``text``, read from ``origin``, describes; references to the environment are resolved here.

    Raises:
        ConfigError: it is no job.yaml of this version, its words are no longer valid, or it has options of a file that nobody has loaded.
    """
    try:
        content = _parse(text)
        if content["format"] != FORMAT:
            raise ConfigError(Problem(origin, "written by another version", got=f"format {content['format']}", allowed=f"format {FORMAT}"))
        tree, data, sources = content["config"], _facts(content["data"]), tuple(map(_source, content["plugins"]))
        if not isinstance(tree, dict):
            raise TypeError("config is no mapping")
        found, git, own = content["versions"], content["git"], content["id"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ConfigError(Problem(origin, "not a job.yaml", got=type(error).__name__, hint="the file is damaged")) from error
    plugins.require(sources)
    plugins.meet(tree)
    return Job(_restored(tree, origin), tree, sources, data, found, git, own)


def _restored(tree: Mapping[str, Any], origin: str) -> Run:
    """The Run of a job's words; what those of an earlier version lack is told in one line, with what to do about it in the file."""
    try:
        return restore(tree)
    except ConfigError as error:
        lacking = ", ".join(each.key for each in error.problems if each.what == "missing")
        if not lacking:
            raise
        what = f"written by a version with other keys: it lacks {lacking}"
        hint = "under config, add what it lacks as it was (dml train --cfg job shows what it is now)"
        others = [each for each in error.problems if each.what != "missing"]
        raise ConfigError(Problem(origin, what, hint=hint), *others) from None


def _parse(text: str) -> Any:
    """Plain values; what ``job_text`` never writes (tags, aliases, deep nesting, a huge file) is refused unread."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError("too large")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
            raise ValueError("not written by this program")
    return yaml.safe_load(text)


def _source(value: Any) -> Source:
    place, sha256, options = value["place"], value["sha256"], tuple(value["options"])
    if not all(isinstance(text, str) for text in (place, sha256, *options)):
        raise TypeError("a source of another kind")
    return Source(place, sha256, options)


def _facts(value: Any) -> DataFacts:
    facts = DataFacts(**{**value, "image": tuple(value["image"]), "labels": tuple(value.get("labels", ()))})
    texts = (facts.kind, facts.store, *facts.digests.keys(), *facts.digests.values(), *facts.labels)
    numbers = [facts.train_samples, facts.eval_samples, facts.sample_tokens, facts.vocabulary, facts.seq_len, facts.classes, facts.skipped]
    numbers += [*facts.image, 0 if facts.sample_weight is None else facts.sample_weight]
    if not (all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)):
        raise TypeError("data facts of another kind")
    if facts.labels and len(facts.labels) != facts.classes:
        raise ValueError("not a word for each label")
    return facts


def read_job_file(path: Path) -> Job:
    """The job of a run folder's job.yaml.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {error.strerror}", hint="a run folder holds a job.yaml")) from error
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(str(path), "not a job.yaml", got="bytes that are no text", hint="the file is damaged")) from error
    return read_job(text, str(path))


def proof(job: str, generation: str) -> str:
    """What every rank must compute from the texts it was given: equal on all, or they are not in the same job."""
    return digest_text(job + "\0" + generation)
