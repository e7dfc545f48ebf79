"""``dml bench loop``: what the training loop costs an update, beside a loop written by hand.

All loops take turns in one process on one thread: same model, batches and optimizer, and one clock in the source of batches.
A turn of a loop is compared with the turn by hand of the same round, so that what the machine does meanwhile cancels out.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dml_runner import config
from dml_runner.bench.frameworks import by_accelerate, by_lightning, installed
from dml_runner.bench.loops import by_hand, by_runner
from dml_runner.bench.machine import machine, told
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.bench.task import BATCH, LOG_EVERY, Clock, Samples, Task
from dml_runner.bench.words import LoopWords, loop_words
from dml_runner.run import Run

Loop = Callable[[Task], nn.Module]
BY_HAND = "plain torch"
LOOPS: dict[str, Loop] = {BY_HAND: by_hand, "dml": by_runner, "accelerate": by_accelerate, "lightning": by_lightning}


def measure(words: Sequence[str]) -> str:
    """The result as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
    """
    asked = loop_words(words)
    missing = [name for name in asked.frameworks if not installed(name)]
    loops = {name: LOOPS[name] for name in (BY_HAND, "dml", *(name for name in asked.frameworks if name not in missing))}
    with _one_thread():
        turns = take_turns(loops, asked)
        result = _result(turns, asked, missing)
    return json.dumps(result, indent=2) + "\n" if asked.form == "json" else _table(result)


def take_turns(loops: dict[str, Loop], asked: LoopWords) -> dict[str, list[float]]:
    """Microseconds an update of each loop in each round; the order turns round from one round to the next."""
    turns: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(asked.pairs + 1):
        for name in list(loops) if number % 2 else reversed(loops):
            clock = Clock(asked.steps)
            gc.collect()
            loops[name](Task(job(clock.needed), Samples(clock), clock.needed))
            if number:  # the first round warms up
                turns[name].append(clock.step_us)
    return turns


def job(steps: int) -> Run:
    """The words every loop follows, for ``steps`` updates."""
    return config.compose(
        [
            "name=bench",
            "hardware=cpu",
            f"train.steps={steps}",
            f"train.global_batch={BATCH}",
            f"train.log_every={LOG_EVERY}",
            "train.eval_batches=1",
            "checkpoint.every=null",
        ]
    ).run


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _result(turns: dict[str, list[float]], asked: LoopWords, missing: list[str]) -> dict[str, Any]:
    hand = turns[BY_HAND]
    loops = {}
    for name, values in turns.items():
        over = estimate([mine - plain for mine, plain in zip(values, hand, strict=True)])
        loops[name] = {"step_us": estimate(values).median, "over_plain_us": _as_json(over)}
    return {"steps": asked.steps, "pairs": asked.pairs, "loops": loops, "not_installed": missing, "machine": machine()}


def _as_json(value: Estimate) -> dict[str, float]:
    return {"median": value.median, "low": value.low, "high": value.high}


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'loop':<12} {'us a step':>10} {'over plain torch':>17}   95 % interval"]
    for name, loop in result["loops"].items():
        over = loop["over_plain_us"]
        tail = "" if name == BY_HAND else f" {over['median']:>+17.1f}   {over['low']:+.1f} to {over['high']:+.1f}"
        lines.append(f"{name:<12} {loop['step_us']:>10.1f}{tail}")
    lines.append(f"median of {result['pairs']} pairs of {result['steps']} steps, a row every {LOG_EVERY}, progress on")
    if result["not_installed"]:
        lines.append(f"not installed: {', '.join(result['not_installed'])} (pip install 'dml_runner[bench]')")
    here = result["machine"]
    lines.append(told(here, threads=True))
    return "\n".join(lines) + "\n"
