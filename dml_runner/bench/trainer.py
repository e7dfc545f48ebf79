"""``dml bench trainer``: a step of fine-tuning, beside the Trainer of the transformers library.

Both sides take turns in one process, on the same threads: the same job from the same weights, the same samples in the same batches,
a row at the same steps, no evaluation inside the time. Turns of the same round are compared, so that what the machine does
meanwhile cancels out.
"""

from __future__ import annotations

import gc
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dml_runner import data
from dml_runner.bench.frameworks import installed
from dml_runner.bench.machine import machine, told
from dml_runner.bench.page import write_page
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.bench.trainer_sides import SCHEDULES, WARM_UP, Clock, Job, by_runner, by_trainer
from dml_runner.bench.trainer_words import NAME, TrainerWords, trainer_words
from dml_runner.errors import ConfigError, Problem
from dml_runner.hardware.detect import detect
from dml_runner.launch.request import read_words
from dml_runner.planning.plan import lay_out
from dml_runner.pretrained import locate, task_for
from dml_runner.run import Run

NEEDED = ("transformers", "accelerate")
OURS, THEIRS = "dml", "transformers Trainer"
SIDES: dict[str, Callable[[Job, Clock], float]] = {OURS: by_runner, THEIRS: by_trainer}


def measure(words: Sequence[str]) -> str:
    """The result as text that ends with a newline: a table, or JSON; and the table in the page that was asked for.

    Raises:
        ConfigError: a word is wrong, or the recipe is no job for both sides.
    """
    asked = trainer_words(words)
    missing = [name for name in NEEDED if not installed(name)]
    if missing:
        hint = "pip install 'dml_runner[bench,huggingface]'"
        raise ConfigError(Problem("bench", "the Trainer needs what is not installed", got=", ".join(missing), hint=hint))
    job = prepare(asked)
    result = {"steps": asked.steps, "pairs": asked.pairs, **_compared(take_turns(job, asked))}
    if asked.accuracy:
        result["full"] = {"updates": job.layout.steps, "samples": job.facts.eval_samples, "sides": _full(job)}
    result["machine"] = machine()
    table = _table(result)
    if asked.page is not None:
        write_page(asked.page, NAME, table)
    return json.dumps(result, indent=2) + "\n" if asked.form == "json" else table


def prepare(asked: TrainerWords) -> Job:
    """The recipe's job, its data prepared.

    Raises:
        ConfigError: a word of the recipe or its data is wrong, or the Trainer cannot do it.
    """
    run = read_words([str(asked.recipe), f"data.path={asked.data}", f"data.eval_path={asked.held_out}"]).run
    _refuse_other_jobs(run)
    facts = data.prepare(run.data, task_for(run), Path(run.outputs) / "cache")
    assert run.model.pretrained is not None, "else it was refused"
    return Job(run, facts, lay_out(run, facts, detect(run.hardware)), locate(run.model.pretrained))


def _refuse_other_jobs(run: Run) -> None:
    """Both sides fine-tune published weights on one CPU, in fp32, by AdamW."""
    problems = []
    for key, got, allowed in (
        ("model.pretrained", run.model.pretrained, "published weights"),
        ("optimizer", run.optimizer.name, "adamw"),
        ("lr_schedule", run.lr_schedule.name, ", ".join(SCHEDULES)),
        ("strategy", run.strategy.name, "single"),
        ("hardware", run.hardware.name, "cpu"),
        ("model.head", getattr(run.model, "head", None), "classifier"),
    ):
        if got is None or (allowed != "published weights" and got not in allowed.split(", ")):
            problems.append(Problem(key, "is not what both sides can do", got=str(got), allowed=allowed))
    if problems:
        raise ConfigError(*problems)


def take_turns(job: Job, asked: TrainerWords) -> dict[str, list[float]]:
    """Milliseconds an update of each side in each round; the order turns round from one round to the next."""
    turns: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(asked.pairs + 1):
        for name in list(SIDES) if number % 2 else reversed(SIDES):
            clock = Clock()
            gc.collect()
            SIDES[name](job.shortened(asked.steps if number else 2), clock)  # the first round warms up
            if number:
                turns[name].append(clock.step_ms)
                _say(f"round {number}/{asked.pairs}  {name:<20} {clock.step_ms:.1f} ms a step")
    return turns


def _full(job: Job) -> dict[str, dict[str, float]]:
    """Each side trained to the recipe's end."""
    found = {}
    for name, side in SIDES.items():
        clock = Clock()
        gc.collect()
        accuracy = side(job, clock)
        found[name] = {"accuracy": accuracy, "step_ms": clock.step_ms}
        _say(f"{name}: accuracy {accuracy:.4f} after {job.layout.steps} updates, {clock.step_ms:.1f} ms each")
    return found


def _compared(turns: dict[str, list[float]]) -> dict[str, Any]:
    ratio = estimate([ours / theirs for ours, theirs in zip(turns[OURS], turns[THEIRS], strict=True)])
    return {"sides": {name: _as_json(estimate(values)) for name, values in turns.items()}, "ratio": _as_json(ratio)}


def _as_json(value: Estimate) -> dict[str, float]:
    return {"median": value.median, "low": value.low, "high": value.high}


def _table(result: dict[str, Any]) -> str:
    full = result.get("full")
    lines = ["| | ms a step | 95 % interval |" + (" accuracy |" if full else ""), "|---|---|---|" + ("---|" if full else "")]
    for name, side in result["sides"].items():
        accuracy = f" {full['sides'][name]['accuracy']:.3f} |" if full else ""
        lines.append(f"| {name} | {side['median']:.1f} | {side['low']:.1f} to {side['high']:.1f} |{accuracy}")
    ratio = result["ratio"]
    difference = ""
    if full:
        ours, theirs = (full["sides"][name]["accuracy"] for name in (OURS, THEIRS))
        difference = f" {ours - theirs:+.3f} |"
    lines.append(f"| ours / theirs | {ratio['median']:.3f} | {ratio['low']:.3f} to {ratio['high']:.3f} |{difference}")
    lines += ["", f"Median of {result['pairs']} alternating pairs of {result['steps']} updates behind a warm-up of {WARM_UP}."]
    if full:
        error = math.sqrt(theirs * (1 - theirs) / full["samples"])
        lines.append(f"Accuracy after {full['updates']} updates, of {full['samples']} held-out texts: standard error {error:.3f}.")
    here = result["machine"]
    lines.append(told(here, threads=True) + ".")
    return "\n".join(lines) + "\n"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
