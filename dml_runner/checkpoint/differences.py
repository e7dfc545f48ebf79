"""How the tensors of a step differ from those a job needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from dml_runner.checkpoint.pieces import Shape
from dml_runner.checkpoint.read import Committed
from dml_runner.checkpoint.verify import KEY
from dml_runner.errors import Problem

SHOWN = 10
"""Differences that are listed one by one."""

Form = tuple[Shape, torch.dtype]


def differences(committed: Committed, expected: Mapping[str, Form]) -> list[Problem]:
    """Nothing if the step has exactly the tensors of ``expected`` (name -> shape, dtype); else counts, then the first ten."""
    missing = [name for name in expected if name not in committed.tensors]
    unexpected = [name for name in committed.tensors if name not in expected]
    both = [name for name in expected if name in committed.tensors]
    shapes = [name for name in both if committed.tensors[name][0] != expected[name][0]]
    dtypes = [name for name in both if name not in set(shapes) and committed.tensors[name][1] != expected[name][1]]
    counted = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "of another dtype": dtypes}
    counts = ", ".join(f"{len(names)} {word}" for word, names in counted.items() if names)
    if not counts:
        return []
    total = sum(map(len, counted.values()))
    more = f"the first {SHOWN} follow" if total > SHOWN else None
    head = Problem(KEY, f"step {committed.step} is of another model: tensors {counts}", hint=more)
    lines = list(_lines(committed, expected, missing, unexpected, shapes, dtypes))
    return [head, *lines[:SHOWN]]


def _lines(
    committed: Committed,
    expected: Mapping[str, Form],
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    dtypes: list[str],
) -> Iterator[Problem]:
    for name in shapes:
        yield Problem(KEY, f"{name} has another shape", got=str(list(committed.tensors[name][0])), allowed=str(list(expected[name][0])))
    for name in dtypes:
        yield Problem(KEY, f"{name} has another dtype", got=str(committed.tensors[name][1]), allowed=str(expected[name][1]))
    for name in missing:
        yield Problem(KEY, f"{name} is missing", allowed=f"{list(expected[name][0])} {expected[name][1]}")
    for name in unexpected:
        yield Problem(KEY, f"{name} is unexpected", got=f"{list(committed.tensors[name][0])} {committed.tensors[name][1]}")
