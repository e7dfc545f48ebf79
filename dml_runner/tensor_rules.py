"""Which part of each parameter a rank holds where layers are split, and what cannot be split: arithmetic over names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dml_runner.errors import Problem
from dml_runner.facts import TensorFact, TensorPlan

_BLOCK = re.compile(r"^blocks\.\d+")


@dataclass(frozen=True)
class Part:
    """Some runs of a parameter's rows (or columns), put one behind the other.

    Attributes:
        dimension: along which it is divided.
        runs: (first, how many) of each run.
    """

    dimension: int
    runs: tuple[tuple[int, int], ...]

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of the part, if ``whole`` is the parameter's."""
        length = sum(count for _, count in self.runs)
        return (*whole[: self.dimension], length, *whole[self.dimension + 1 :])


def pattern_of(name: str) -> str:
    """The name with ``*`` for the number of a block, as a ``TensorPlan`` writes it."""
    return _BLOCK.sub("blocks.*", name)


def part_of(plan: TensorPlan, name: str, shape: tuple[int, ...], rank: int, ranks: int) -> Part | None:
    """The part of the parameter ``name`` of this ``shape`` that ``rank`` of ``ranks`` holds; None: all of it.

    Rows of tokens are divided as ``laws.bounds`` does, unevenly where the ranks do not divide them; all else evenly (``refusals``).
    """
    module, _, leaf = pattern_of(name).rpartition(".")
    if module in plan.vocabulary:
        first, end = (shape[0] * place // ranks for place in (rank, rank + 1))
        return Part(0, ((first, end - first),))
    if module in plan.column:
        runs, start = [], 0
        for rows in plan.fused.get(module, (shape[0],)):
            runs.append((start + rows // ranks * rank, rows // ranks))
            start += rows
        return Part(0, tuple(runs))
    if module in plan.row and leaf == "weight":
        columns = shape[1] // ranks
        return Part(1, ((columns * rank, columns),))
    return None


def refusals(plan: TensorPlan, degree: int, tensors: Iterable[TensorFact], key: str, sequence_parallel: bool = False) -> Iterator[Problem]:
    """Why a model cannot be split over ``degree`` ranks; nothing: it can.

    Args:
        plan: the model's.
        degree: ranks of the tensor axis; 1 is never refused.
        tensors: the model's parameters.
        key: what the user wrote the degree under.
        sequence_parallel: whether what is not split is to be divided by position in the text.
    """
    if degree == 1:
        return
    if not (plan.column or plan.row or plan.vocabulary):
        why = "; ".join(f"{name}: {reason}" for name, reason in plan.whole.items())
        yield Problem(key, f"no layer of this model can be split ({why})", got=str(degree), allowed="1")
        return
    if sequence_parallel and not plan.column:
        what = "no block of this model is split, so none is divided by position"
        yield Problem("strategy.sequence_parallel", what, got="true", allowed="false")
    columns = {module.rpartition(".")[0] for module in plan.column}
    for parent in sorted(columns ^ {module.rpartition(".")[0] for module in plan.row} | columns & {"", "blocks.*"}):
        what = f"column and row layers must stand together in a module of their own inside a block; in the plan those of {parent!r} do not"
        yield Problem(key, what, got=str(degree), allowed="1")
    seen = set()
    for tensor in tensors:
        module, _, leaf = pattern_of(tensor.name).rpartition(".")
        if module not in seen and (leaf == "weight" or module in plan.vocabulary):
            yield from _uneven(plan, degree, module, tensor.shape, key)
            seen.add(module)


def notes(plan: TensorPlan) -> Iterator[str]:
    """What stays whole on every rank although the rest is split, with the reason."""
    if plan.column or plan.row or plan.vocabulary:
        for module, reason in plan.whole.items():
            yield f"{module} stays whole on every rank: {reason}"


def _uneven(plan: TensorPlan, degree: int, module: str, shape: tuple[int, ...], key: str) -> Iterator[Problem]:
    """What of ``module``, whose weight has this ``shape``, ``degree`` ranks do not divide."""
    if module in plan.vocabulary and shape[0] < degree:
        yield Problem(key, f"more ranks than {module} has tokens", got=str(degree), allowed=f"1 to {shape[0]}")
    counts: list[int] = []
    if module in plan.column:
        unit = plan.column[module]
        counts = sorted({rows // unit for rows in plan.fused.get(module, (shape[0],))})
        what = "groups of rows that stay together (heads)" if unit > 1 else "rows"
    elif module in plan.row:
        counts, what = [shape[1]], "columns"
    for count in counts:
        if count % degree:
            fits = ", ".join(str(number) for number in range(1, count + 1) if all(each % number == 0 for each in counts))
            yield Problem(key, f"does not divide the {count} {what} of {module}", got=str(degree), allowed=fits)
            return
