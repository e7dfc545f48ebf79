"""Is this the same job? Model, data, optimizer, schedule, seed, batch and precision decide; strategy, machine and length do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dml_runner.errors import Problem
from dml_runner.facts import DataFacts
from dml_runner.job import Job
from dml_runner.run import Run

SHOWN = 10


def differences(before: Job, global_batch: int, run: Run, data: DataFacts) -> list[Problem]:
    """The first differences between a job that was started, with its global batch, and one about to start."""
    found = [*data_differences(before, data), *word_differences(before.run, global_batch, run)]
    return found[:SHOWN]


def word_differences(before: Run, global_batch: int, run: Run) -> Iterator[Problem]:
    """Keys of the job that were one thing and are another."""
    old, new = _words(before), _words(run)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield _changed(key, old.get(key), new.get(key))
    train = run.train
    if train.global_batch is not None and train.global_batch != global_batch:
        yield _changed("train.global_batch", global_batch, train.global_batch)


def data_differences(before: Job, data: DataFacts) -> Iterator[Problem]:
    """Sources whose content changed, and what follows from it."""
    old, new = before.data, data
    if sorted(old.digests.values()) != sorted(new.digests.values()):
        for name in sorted(old.digests.keys() | new.digests.keys()):
            if old.digests.get(name) != new.digests.get(name):
                yield _changed(f"data {name}", *(_short(facts.digests.get(name)) for facts in (old, new)))
    if old.vocabulary != new.vocabulary:
        yield _changed("vocabulary", old.vocabulary, new.vocabulary)
    if old.seq_len != new.seq_len:
        yield _changed("data.seq_len", old.seq_len, new.seq_len)


def model_differences(before: Run, run: Run) -> Iterator[Problem]:
    """Keys of the model that were one thing and are another."""
    old, new = before.model.model_dump(), run.model.model_dump()
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield _changed(f"model.{key}", old.get(key), new.get(key))


def _words(run: Run) -> dict[str, Any]:
    words: dict[str, Any] = {"seed": run.seed, "train.precision": run.train.precision, "train.clip_norm": run.train.clip_norm}
    for group in ("model", "optimizer", "lr_schedule"):
        section = getattr(run, group).model_dump()
        words |= {f"{group}.{key}": value for key, value in section.items()}
    words["data.tokenizer"] = run.data.tokenizer
    return words


def _changed(key: str, old: object, new: object) -> Problem:
    return Problem(key, "differs from the run's", got=str(new), allowed=str(old))


def _short(digest: str | None) -> str:
    return "no such source" if digest is None else f"SHA-256 {digest[:12]}"
