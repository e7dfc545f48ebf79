"""``dml bench memory``: what activations take under each way to recompute, as planned and as torch's tracker counts them, and its price.

All ways take turns in one process, on one rank's engine each; times of the same round are compared, so that what the machine does
meanwhile cancels out. Memory is counted in a forward and backward of its own: the tracker slows down what it watches.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from dml_runner import data
from dml_runner.bench.machine import machine, told
from dml_runner.bench.memory_words import NAME, MemoryWords, memory_words
from dml_runner.bench.page import write_page
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.bench.units import size
from dml_runner.comm.world import World
from dml_runner.engines.assemble import assemble, build_model
from dml_runner.engines.base import Weighed
from dml_runner.engines.torch_engine import TorchEngine
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.hardware.detect import detect
from dml_runner.launch.request import read_words
from dml_runner.layout import Layout, Recomputed
from dml_runner.models.base import Batch
from dml_runner.parallel.recompute import recompute
from dml_runner.planning.activations import rank_activations
from dml_runner.planning.plan import lay_out
from dml_runner.planning.shape import measure as measure_shape
from dml_runner.pretrained import task_for
from dml_runner.run import Run

CPU = torch.device("cpu")
RATE = 1e-4


@dataclass(frozen=True)
class Row:
    """One way to recompute.

    Attributes:
        way: in the words of a job.
        planned: bytes of activations at their most, as the plan has them.
        measured: the same, counted.
        ratio: of a step's time to one that keeps everything, round by round.
    """

    way: str
    planned: int
    measured: int
    ratio: Estimate


@dataclass(frozen=True)
class Job:
    """What every way trains: the words, the prepared data, one rank's layout, and its first batch."""

    run: Run
    facts: DataFacts
    layout: Layout
    batch: Batch


def measure(words: Sequence[str]) -> str:
    """The result as text that ends with a newline: a table, or JSON; and the table in the page that was asked for.

    Raises:
        ConfigError: a word is wrong, or the job is none for one rank on a CPU.
    """
    asked = memory_words(words)
    job = prepare(asked)
    shape = measure_shape(job.run, job.facts, job.layout)
    if shape.undivided is not None:
        raise ConfigError(Problem("model", f"{shape.undivided}, so nothing is planned of its blocks", got=job.run.model.name))
    ways = _ways(shape.blocks)
    times = _take_turns(job, ways, asked)
    rows = []
    for name, how in ways.items():
        planned = sum(rank_activations(shape, replace(job.layout, recompute=how)))
        ratio = estimate([mine / plain for mine, plain in zip(times[name], times["none"], strict=True)])
        rows.append(Row(name, planned, held(job, how), ratio))
        _say(f"{name}: {size(rows[-1].measured)}")
    result = {"job": " ".join(asked.job), "rounds": asked.rounds, "steps": asked.steps, "rows": rows, "machine": machine()}
    table = _table(result)
    if asked.page is not None:
        write_page(asked.page, NAME, table)
    if asked.form == "table":
        return table
    return json.dumps({**result, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"


def prepare(asked: MemoryWords) -> Job:
    """The job on one rank of this machine, its data prepared.

    Raises:
        ConfigError: a word of it is wrong, or it is none for one rank on a CPU.
    """
    run = read_words([*asked.job, "strategy=single", "hardware=cpu", "recompute=none"]).run
    facts = data.prepare(run.data, task_for(run), Path(run.outputs) / "cache")
    layout = lay_out(run, facts, detect(run.hardware))
    opened = data.open_data(run.data, task_for(run), facts, run.seed)
    picks = opened.order(run.seed).step(1, layout.batch.global_batch)[: layout.batch.micro_batch]
    return Job(run, facts, replace(layout, steps=10**6), opened.train_batch(picks))


def held(job: Job, how: Recomputed) -> int:
    """Bytes that one forward and backward of a micro-batch holds at most beside weights and gradients."""
    model = build_model(job.run, job.facts, CPU).train()
    recompute(model, how, CPU)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    tracker = MemTracker()
    tracker.track_external(model)
    before = tracker.get_tracker_snapshot()[CPU]["Total"]
    with tracker, torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.layout.precision == "bf16"):
        output = model(job.batch)  # there until backward is over, as in an engine
        model.loss(output, job.batch)[0].backward()
    return int(tracker.get_tracker_snapshot("peak")[CPU]["Total"] - before)


def _ways(blocks: int) -> dict[str, Recomputed]:
    stretches = [every for every in (1, 2, 4, 8, 16) if every <= blocks]
    full = {f"full, every={every}": Recomputed("inputs", every) for every in stretches}
    return {"none": Recomputed("none"), "selective": Recomputed("products"), **full}


def _take_turns(job: Job, ways: Mapping[str, Recomputed], asked: MemoryWords) -> dict[str, list[float]]:
    """Seconds a step under each way in each round; the order turns round from one round to the next."""
    engines = {name: assemble(job.run, job.facts, replace(job.layout, recompute=how), World(0, 1, CPU)) for name, how in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    weight = Weighed(float(job.layout.batch.micro_batch * (job.facts.sample_weight or 1)))
    for turn in range(asked.rounds + 1):
        for name in list(ways) if turn % 2 else reversed(list(ways)):
            engine = engines[name]
            assert isinstance(engine, TorchEngine)
            started = time.perf_counter()
            for step in range(asked.steps):
                engine.step(turn * asked.steps + step + 1, [job.batch], weight, RATE)
            if turn:  # the first round warms up
                times[name].append((time.perf_counter() - started) / asked.steps)
        _say(f"round {turn}/{asked.rounds}")
    return times


def _table(result: Mapping[str, Any]) -> str:
    lines = ["| recompute | planned | measured | step time | 95 % interval |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        ratio = f"{row.ratio.median:.2f}x | {row.ratio.low:.2f} to {row.ratio.high:.2f}"
        lines.append(f"| {row.way} | {size(row.planned)} | {size(row.measured)} | {ratio} |")
    rounds, steps = result["rounds"], result["steps"]
    lines += ["", f"`{result['job']}`, one rank: bytes of activations at their most; a step's time over one that keeps everything,"]
    lines += [f"median of {rounds} alternating rounds of {steps} steps. {told(result['machine'], threads=True)}."]
    return "".join(f"{line}\n" for line in lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
