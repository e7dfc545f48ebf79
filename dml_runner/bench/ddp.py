"""``dml bench ddp``: the runner's loop with ``strategy=all_reduce`` beside a DDP script written by hand, on the same shaped hosts.

Both take turns in the same processes, over the same links, with the same samples; turns of one pair are compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dml_runner.bench.machine import machine, told
from dml_runner.bench.network import INTERFACE, lab
from dml_runner.bench.overlap_words import DdpWords, ddp_words
from dml_runner.bench.page import write_page
from dml_runner.bench.ranks import run_module
from dml_runner.bench.statistics import Estimate, estimate


def measure(words: Sequence[str]) -> str:
    """Both sides on hosts that are made for it, as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
        LaunchError: this machine or user cannot have hosts.
        RunFailed: a rank failed.
    """
    asked = ddp_words(words)
    with lab(asked.hosts, asked.mbit) as made:
        ask = {"steps": asked.steps, "pairs": asked.pairs}
        turns: dict[str, list[float]] = run_module("dml_runner.bench.ddp_rank", ask, [host.command for host in made.hosts], INTERFACE)
    ours, theirs = turns["dml"], turns["by hand"]
    ratio = estimate([mine / plain for mine, plain in zip(ours, theirs, strict=True)])
    sides = {name: estimate(values) for name, values in turns.items()}
    table = _table(asked, sides, ratio)
    if asked.page is not None:
        write_page(asked.page, "ddp", f"```\n{table}```\n")
    if asked.form == "table":
        return table
    told: dict[str, Any] = {"hosts": asked.hosts, "mbit": asked.mbit, "steps": asked.steps, "pairs": asked.pairs}
    found = {"sides": {name: asdict(side) for name, side in sides.items()}, "ratio": asdict(ratio), "machine": machine()}
    return json.dumps({**told, **found}, indent=2) + "\n"


def _table(asked: DdpWords, sides: dict[str, Estimate], ratio: Estimate) -> str:
    lines = [f"{'loop':<14} {'ms a step':>9}   95 % interval"]
    lines += [f"{name:<14} {took.median * 1e3:>9.1f}   {took.low * 1e3:.1f} to {took.high * 1e3:.1f}" for name, took in sides.items()]
    here = machine()
    lines += [
        f"{'dml / by hand':<14} {ratio.median:>9.3f}   {ratio.low:.3f} to {ratio.high:.3f}",
        f"{asked.hosts} hosts at {asked.mbit} Mbit/s each way; median of {asked.pairs} alternating pairs of {asked.steps} updates",
        told(here),
    ]
    return "".join(f"{line}\n" for line in lines)
