"""Is this the same job? Model, data, optimizer, schedule, seed, batch and precision decide; strategy, machine and length do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dml_runner import models, optim
from dml_runner.checkpoint import differences as tensors
from dml_runner.checkpoint.read import Committed
from dml_runner.engines.streams import NAME as STREAMS
from dml_runner.errors import Problem
from dml_runner.facts import DataFacts
from dml_runner.job import Job
from dml_runner.layout import Batch
from dml_runner.optim.parts.step import state_of
from dml_runner.run import Run

SHOWN = 10
NOT_OF_THE_JOB = ("name", "path", "eval_path", "workers")
"""Keys of the data that do not tell what is in it: digests do."""


def differences(before: Job, first: Batch, run: Run, data: DataFacts) -> list[Problem]:
    """The first differences between a job that was started, with its first batch, and one about to start."""
    found = [*data_differences(before, data), *word_differences(before.run, run), *batch_differences(before.run, first, run)]
    return found[:SHOWN]


def word_differences(before: Run, run: Run) -> Iterator[Problem]:
    """Keys of the job that were one thing and are another."""
    old, new = _words(before), _words(run)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield _changed(key, old.get(key), new.get(key))


def batch_differences(before: Run, first: Batch, run: Run) -> Iterator[Problem]:
    """Words that ask for another global batch than the first start's.

    A micro-batch never does: it bounds how the global batch is divided. Nor do words that leave it open.
    """
    old, new = before.train, run.train
    if new.global_batch is not None:
        if new.global_batch != first.global_batch:
            yield _changed("train.global_batch", first.global_batch, new.global_batch)
    elif new.accumulation not in (None, old.accumulation):
        yield _changed("train.accumulation", old.accumulation, new.accumulation)


def data_differences(before: Job, data: DataFacts) -> Iterator[Problem]:
    """Sources whose content changed, and what follows from it; their names and places may be others."""
    old, new = before.data, data
    if list(old.digests.values()) != list(new.digests.values()):
        pairs = _by_name(before, data) if old.digests.keys() == new.digests.keys() else _by_place(before, data)
        changed = [(name, *pair) for name, *pair in pairs if pair[0] != pair[1]]
        if not changed:
            yield _changed("data", "read as " + ", ".join(old.digests), "read as " + ", ".join(new.digests))
        for name, was, now in changed:
            yield _changed(f"data {name}", _short(was), _short(now))
    if old.labels and new.labels and old.labels != new.labels:
        yield _changed("labels", labels_told(old.labels, new.labels), labels_told(new.labels, old.labels))
    for key in ("vocabulary", "seq_len", "train_samples", "eval_samples"):
        if getattr(old, key) != getattr(new, key):
            yield _changed("data.seq_len" if key == "seq_len" else key, getattr(old, key), getattr(new, key))


def labels_told(labels: Sequence[str], others: Sequence[str]) -> str:
    """All the labels where they are few, else some from the first one on that is not in its place among the ``others``."""
    first = 0
    if len(labels) > SHOWN:
        places = range(min(len(labels), len(others)))
        first = next((place for place in places if labels[place] != others[place]), len(places))
    shown, rest = labels[first : first + SHOWN], len(labels) - first - SHOWN
    return (f"from number {first} on " if first else "") + ", ".join(map(repr, shown)) + (f" and {rest} more" if rest > 0 else "")


def model_differences(before: Run, run: Run) -> Iterator[Problem]:
    """Keys of the model that were one thing and are another."""
    old, new = before.model.model_dump(), run.model.model_dump()
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield _changed(f"model.{key}", old.get(key), new.get(key))


def tensor_differences(committed: Committed, run: Run, data: DataFacts) -> list[Problem]:
    """How the tensors of a step differ from the weights and the optimizer state that the job has, by name and shape."""
    with torch.device("meta"):
        model = models.build(run.model, data)
    expected = {f"model/{name}": (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
    state = _optimizer_state(run)
    for name, parameter in model.named_parameters():
        for key, tensor in state.items() if parameter.requires_grad else ():
            expected[f"optimizer/{key}/{name}"] = (tuple(parameter.shape) if tensor.dim() else (), tensor.dtype)
    if (shape := model.state_shape()) is not None:
        streams = committed.tensors[STREAMS][0][0] if STREAMS in committed.tensors else 0
        expected[STREAMS] = ((streams, *shape), torch.float32)
    return tensors.differences(committed, expected)


def _optimizer_state(run: Run) -> dict[str, Tensor]:
    """What the job's optimizer keeps of a parameter, here one of a single element."""
    parameter = nn.Parameter(torch.zeros(1, 1))
    optimizer = optim.build(run.optimizer, [(parameter, 0, True)])
    parameter.grad = torch.zeros(1, 1)
    optimizer.step()
    return dict(state_of(optimizer, parameter))


def _words(run: Run) -> dict[str, Any]:
    words: dict[str, Any] = {"seed": run.seed, "train.precision": run.train.precision, "train.clip_norm": run.train.clip_norm}
    for group in ("model", "optimizer", "lr_schedule"):
        section = getattr(run, group).model_dump()
        words |= {f"{group}.{key}": value for key, value in section.items()}
    words |= {f"data.{key}": value for key, value in run.data.model_dump().items() if key not in NOT_OF_THE_JOB}
    return words


def _by_name(before: Job, data: DataFacts) -> list[tuple[str, str | None, str | None]]:
    return [(name, digest, data.digests.get(name)) for name, digest in before.data.digests.items()]


def _by_place(before: Job, data: DataFacts) -> list[tuple[str, str | None, str | None]]:
    """The n-th source of one beside the n-th of the other."""
    old, new = list(before.data.digests.items()), list(data.digests.items())
    count = max(len(old), len(new))
    old_or_none = [*old, *[("", None)] * (count - len(old))]
    new_or_none = [*new, *[("", None)] * (count - len(new))]
    return [(here[0] or there[0], here[1], there[1]) for here, there in zip(old_or_none, new_or_none, strict=True)]


def _changed(key: str, old: object, new: object) -> Problem:
    return Problem(key, "differs from the run's", got=str(new), allowed=str(old))


def _short(digest: str | None) -> str:
    return "no such source" if digest is None else f"SHA-256 {digest[:12]}"
