"""``dml bench straggler``: how far bsp, ssp and asp come in the same time when a worker is slow now and then.

Real jobs of ``dml train strategy=parameter_server``, with a model that sleeps in place of computing (bench/straggler_model.py). Time is
that of training: evaluations stop the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from dml_runner.bench.machine import machine, told
from dml_runner.bench.page import write_page
from dml_runner.bench.processes import end, unplaced
from dml_runner.bench.straggler_words import MODES, WORKERS, StragglerWords, straggler_words
from dml_runner.errors import RunFailed

LONGEST_S = 120.0
"""Seconds that a job may take beside those it trains, to start and to end."""
LOOK_S = 0.2
DOTS = 120
COLOURS = {"bsp": "#555555", "ssp": "#1f77b4", "asp": "#d62728"}


@dataclass(frozen=True)
class Course:
    """One job.

    Attributes:
        times: seconds of training until each evaluation.
        losses: on held-out images.
        steps: that were made.
        gap: most pushes by which a worker was ahead of the slowest; None: all went together.
    """

    times: tuple[float, ...]
    losses: tuple[float, ...]
    steps: int
    gap: int | None

    def at(self, seconds: float) -> float:
        """The loss after so long, on the line between the two evaluations about it."""
        return float(np.interp(seconds, self.times, self.losses))


def measure(words: Sequence[str]) -> str:
    """The three side by side, as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
        RunFailed: a job failed.
    """
    asked = straggler_words(words)
    found: dict[str, list[Course]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory(prefix="dml-") as folder:
        for seed in range(1, asked.seeds + 1):
            for mode in MODES:
                found[mode].append(train(asked, mode, seed, Path(folder) / f"{mode}-{seed}"))
    table = _table(asked, found)
    if asked.page is not None:
        picture = f"{asked.page.stem}-{asked.mark}.png"
        _draw(asked, found, asked.page.parent / picture)
        write_page(asked.page, asked.mark, f"```\n{table}```\n\n![{asked.mark}]({picture})\n")
    if asked.form == "table":
        return table
    courses = {mode: [asdict(course) for course in courses] for mode, courses in found.items()}
    return json.dumps({"seconds": asked.seconds, "staleness": asked.staleness, "courses": courses, "machine": machine()}, indent=2) + "\n"


def train(asked: StragglerWords, mode: str, seed: int, folder: Path) -> Course:
    """Run one job.

    Raises:
        RunFailed: it failed; with its last line.
    """
    plugin = Path(__file__).with_name("straggler_model.py")
    words = [f"plugins={plugin}", "model=sleeper", f"model.who={asked.who}", "data=digits", "data.workers=0", "hardware=cpu"]
    words += [f"model.{key}={value}" for key, value in (("chance", asked.chance), ("least_ms", asked.least), ("most_ms", asked.most))]
    words += [f"hardware.devices_per_node={WORKERS}", "strategy=parameter_server", f"strategy.consistency={mode}"]
    words += [f"strategy.staleness={asked.staleness}", "optimizer=sgd", f"optimizer.lr={asked.rate}", "optimizer.weight_decay=0"]
    words += [f"optimizer.momentum={asked.momentum}", f"seed={seed}", f"train.global_batch={asked.batch}", "train.steps=1000000"]
    words += ["train.clip_norm=null"]
    words += [f"train.eval_every={asked.every}", f"train.log_every={asked.every}", "train.check_every=null", "checkpoint.every=null"]
    words += [f"run={folder}"]
    rows, limit = folder / "metrics.jsonl", time.monotonic() + asked.seconds + LONGEST_S
    with folder.with_suffix(".log").open("w+") as said:
        command = [sys.executable, "-m", "dml_runner", "train", *words]
        environment = {**unplaced(), "OMP_NUM_THREADS": "1"}
        job = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        try:
            while job.poll() is None and time.monotonic() < limit and _trained(rows) < asked.seconds:
                time.sleep(LOOK_S)
            job.terminate()
            job.wait(LONGEST_S)
        finally:
            end([job], 0.0)
        said.seek(0)
        lines = said.read().strip().splitlines()
    if job.returncode not in (0, 143):
        raise RunFailed(f"the {mode} job of seed {seed} ended with code {job.returncode}: {lines[-1] if lines else 'without a word'}")
    course = read_course(_read(rows))
    if not course.times:
        raise RunFailed(f"the {mode} job of seed {seed} came to no evaluation in {course.steps} steps: give it more seconds=")
    return course


def _read(rows: Path) -> list[dict[str, Any]]:
    """The whole rows of a file that a job may be writing, or has not begun."""
    text = rows.read_text() if rows.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _trained(rows: Path) -> float:
    """Seconds a job has trained until its last evaluation."""
    times = read_course(_read(rows)).times
    return times[-1] if times else 0.0


def read_course(rows: Sequence[Mapping[str, Any]]) -> Course:
    """A job by its rows: each says how long a step took on average since the one before."""
    now, before, times, losses, gap = 0.0, 0, [], [], None
    for row in rows:
        if "step_time_s" in row:
            now += row["step_time_s"] * (row["step"] - before)
            before, gap = row["step"], row.get("clock_gap", gap)
        if "eval_loss" in row:
            times.append(now)
            losses.append(row["eval_loss"])
    return Course(tuple(times), tuple(losses), before, gap)


def _table(asked: StragglerWords, found: Mapping[str, Sequence[Course]]) -> str:
    end = _end(asked, found)
    marks = [end / 4, end / 2, end]
    lines = [f"{'':<4} {'steps':>6} " + " ".join(f"{f'loss at {mark:.0f} s':>14}" for mark in marks) + f" {'lowest':>7} {'widest gap':>11}"]
    finals = {mode: [course.at(end) for course in courses] for mode, courses in found.items()}
    for mode, courses in found.items():
        losses = " ".join(f"{median(course.at(mark) for course in courses):>14.4f}" for mark in marks)
        best = sum(own == min(finals[other][seed] for other in finals) for seed, own in enumerate(finals[mode]))
        gaps = [course.gap for course in courses if course.gap is not None]
        gap = "-" if not gaps else f"{max(gaps)}" + (f" of {asked.staleness}" if mode == "ssp" else "")
        lines.append(f"{mode:<4} {median(course.steps for course in courses):>6.0f} {losses} {best:>3} of {len(courses)} {gap:>9}")
    here = machine()
    slow = "one worker" if asked.who == "one" else "each worker"
    if asked.seeds > 1:
        lines.append(
            "last loss above that of ssp, mean (standard error) over seeds: "
            + ", ".join(_above_ssp(finals, mode) for mode in ("bsp", "asp"))
        )
    lines += [
        f"{WORKERS} workers, 1 server; a step computes 20 ms, and {slow} sleeps {asked.least} to {asked.most} ms more,"
        f" {asked.chance:.0%} of the time",
        f"digits, {asked.batch} a step, sgd at lr {asked.rate}, momentum {asked.momentum:g}, ssp with staleness {asked.staleness}:"
        f" loss on held-out images, median of {asked.seeds} seeds;",
        "lowest: seeds whose last loss is the lowest of the three; widest gap: pushes that a worker was ahead of the slowest",
        told(here, more=f", load {os.getloadavg()[0]:.1f}"),
    ]
    return "".join(f"{line}\n" for line in lines)


def _above_ssp(finals: Mapping[str, Sequence[float]], mode: str) -> str:
    """By how much a mode's last loss is above that of ssp; seeds are pairs."""
    gaps = [own - ssp for own, ssp in zip(finals[mode], finals["ssp"], strict=True)]
    return f"{mode} {mean(gaps):+.4f} ({stdev(gaps) / len(gaps) ** 0.5:.4f})"


def _end(asked: StragglerWords, found: Mapping[str, Sequence[Course]]) -> float:
    """The last moment that every job has come to."""
    return min(float(asked.seconds), *(course.times[-1] for courses in found.values() for course in courses))


def _draw(asked: StragglerWords, found: Mapping[str, Sequence[Course]], file: Path) -> None:
    """The median loss over time, each seed thin behind it. matplotlib is needed for this alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    grid = np.linspace(0.0, _end(asked, found), 80)
    for mode, courses in found.items():
        for course in courses:
            axes.plot(course.times, course.losses, color=COLOURS[mode], alpha=0.2, linewidth=0.8)
        axes.plot(grid, [median(course.at(moment) for course in courses) for moment in grid], color=COLOURS[mode], label=mode)
    axes.set(yscale="log", xlabel="seconds of training", ylabel="loss on held-out images", xlim=(0, grid[-1]))
    axes.legend()
    figure.savefig(file, dpi=DOTS)
