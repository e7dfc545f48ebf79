"""``dml bench bubble``: how long ranks of a pipeline wait, beside the laws of the schedules, and what they keep for backward.

The executor and its messages are those of training; computing is played by sleeps, as all ranks share this machine's cores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from dml_runner.bench.bubble_words import BubbleWords, bubble_words
from dml_runner.bench.machine import machine, told
from dml_runner.bench.page import write_page
from dml_runner.bench.ranks import here, run_module
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.files import write_atomically
from dml_runner.layout import Stages
from dml_runner.parallel.pipeline.executor import measured
from dml_runner.schedules import build
from dml_runner.schedules.base import Schedule
from dml_runner.schedules.drawing import as_svg
from dml_runner.schedules.in_flight import peak
from dml_runner.schedules.timeline import Timeline, equal_costs, timeline

CHUNKS = 2
"""Virtual stages a rank where they interleave."""


@dataclass(frozen=True)
class Row:
    """One schedule on a number of ranks and micro-batches.

    Attributes:
        ranks, microbatches: how many.
        schedule: its name.
        law: share of the ranks' time in which they wait, by the law of the schedule.
        paper: the same of the schedule on paper, where messages take no time.
        idle: the same as measured, over the steps.
        step: seconds of a step, median.
        held_on_paper: micro-batches whose activations each rank keeps at most.
        held: the same as measured.
        drawn: the last step as it ran.
    """

    ranks: int
    microbatches: int
    schedule: str
    law: float
    paper: float
    idle: Estimate
    step: float
    held_on_paper: list[float]
    held: list[float]
    drawn: Timeline = field(repr=False)


def measure(words: Sequence[str]) -> str:
    """Idle shares and kept activations, as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
        RunFailed: a rank failed.
    """
    asked = bubble_words(words)
    rows = [row for ranks in asked.ranks for row in _rows(asked, ranks)]
    table = _table(asked, rows)
    if asked.page is not None:
        picture = f"{asked.page.stem}-bubble.svg"
        write_atomically(asked.page.parent / picture, _drawing(asked, rows))
        write_page(asked.page, "bubble", f"```\n{table}```\n\n![each schedule as it ran]({picture})\n")
    if asked.form == "table":
        return table
    found = [{name: value for name, value in asdict(row).items() if name != "drawn"} for row in rows]
    return json.dumps({"ms": asked.seconds * 1e3, "rounds": asked.rounds, "rows": found, "machine": machine()}, indent=2) + "\n"


def law(schedule: str, ranks: int, microbatches: int, chunks: int) -> float:
    """Share of time that ``ranks`` equal stages wait, where a backward takes two forwards, and half of it each half (docs/pipelines.md).

    Naive: (K - 1) / K. GPipe (Huang et al. 2019) and 1F1B (Narayanan et al. 2021): (K - 1) / (M + K - 1); with C chunks a rank
    (K - 1) / (M C + K - 1). ZB-H1 (Qi et al. 2023): (K - 1) / (3 M + K - 1).
    """
    if schedule == "naive":
        return (ranks - 1) / ranks
    return (ranks - 1) / (microbatches * chunks * (3 if schedule == "zero_bubble" else 1) + ranks - 1)


def _rows(asked: BubbleWords, ranks: int) -> list[Row]:
    jobs = [(name, _chunks(name), micro) for micro in asked.microbatches for name in asked.schedules]
    ask = {
        "jobs": [{"schedule": name, "chunks": chunks, "microbatches": micro} for name, chunks, micro in jobs],
        "seconds": asked.seconds,
        "rounds": asked.rounds,
    }
    found: list[dict[str, Any]] = run_module("dml_runner.bench.bubble_rank", ask, [here] * ranks, "lo")
    return [_row(asked, ranks, *job, each) for job, each in zip(jobs, found, strict=True)]


def _row(asked: BubbleWords, ranks: int, name: str, chunks: int, micro: int, found: dict[str, Any]) -> Row:
    schedule: Schedule = build(Stages(name, chunks, tuple(range(1, ranks * chunks))), ranks, micro)  # type: ignore[arg-type]
    steps = [measured(schedule, [torch.tensor(times, dtype=torch.float64) for times in step]) for step in found["times"]]
    sizes = [1 / chunks] * schedule.stages
    return Row(
        ranks=ranks,
        microbatches=micro,
        schedule=name,
        law=law(name, ranks, micro, chunks),
        paper=timeline(schedule, equal_costs(schedule.stages)).idle_share,
        idle=estimate([step.idle_share for step in steps]),
        step=estimate([step.makespan for step in steps]).median,
        held_on_paper=list(peak(schedule, sizes)),
        held=[kept / chunks for kept in found["kept"]],
        drawn=steps[-1],
    )


def _chunks(schedule: str) -> int:
    return CHUNKS if schedule == "interleaved_1f1b" else 1


def _table(asked: BubbleWords, rows: Sequence[Row]) -> str:
    head = f"{'idle by law':>11} {'measured':>9} {'points off':>10} {'step':>8}   kept, by rank"
    lines = [f"{'ranks':>5} {'micro':>5}  {'schedule':<17} {head}"]
    for row in rows:
        off = 100 * (row.idle.median - row.law)
        held, expected = (" ".join(f"{each:g}" for each in kept) for kept in (row.held, row.held_on_paper))
        kept = held if held == expected else f"{held} (on paper {expected})"
        shares = f"{100 * row.law:>9.1f} % {100 * row.idle.median:>7.1f} % {off:>+10.1f}"
        lines.append(f"{row.ranks:>5} {row.microbatches:>5}  {row.schedule:<17} {shares} {1e3 * row.step:>5.0f} ms   {kept}")
    lines += [
        f"a rank's forward of a micro-batch sleeps {1e3 * asked.seconds:g} ms, its backward twice as long; median of {asked.rounds} steps;"
        f" {CHUNKS} chunks where interleaved",
        "kept: micro-batches whose activations each rank, 0 first, held for backward at most, counted as autograd keeps and frees them;"
        " as on paper, unless told",
        told(machine()),
    ]
    return "".join(f"{line}\n" for line in lines)


def _drawing(asked: BubbleWords, rows: Sequence[Row]) -> str:
    """Each schedule on the first number of ranks and micro-batches."""
    first = [row for row in rows if (row.ranks, row.microbatches) == (asked.ranks[0], asked.microbatches[0])]
    title = f"Schedules as they ran: {asked.ranks[0]} ranks, {asked.microbatches[0]} micro-batches"
    return as_svg({row.schedule: row.drawn for row in first}, title)
