"""``dml bench overlap``: gradients summed while backward goes on, on shaped hosts, beside each of the two alone.

Computing is played by sleeps inside backward, as all hosts share this machine's cores. What a step could take at best is the longer of
the two; the first bucket must be computed before anything is sent, and the last sent after all is computed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dml_runner.bench.machine import machine, told
from dml_runner.bench.network import INTERFACE, lab
from dml_runner.bench.overlap_words import OverlapWords, overlap_words
from dml_runner.bench.page import write_page
from dml_runner.bench.ranks import run_module
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.bench.units import duration, size

FP32 = 4


@dataclass(frozen=True)
class Row:
    """One algorithm and length of computing.

    Attributes:
        algorithm: how ranks sum.
        compute: seconds of a step that only computes.
        communication: of one that only sums.
        both: of one that does both.
        ratio: of the last to the longer of the others, round by round.
    """

    algorithm: str
    compute: float
    communication: float
    both: float
    ratio: Estimate


def measure(words: Sequence[str]) -> str:
    """Steps with and without overlap on hosts that are made for it, as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
        LaunchError: this machine or user cannot have hosts.
        RunFailed: a rank failed.
    """
    asked = overlap_words(words)
    ask = {"layers": asked.layers, "elements": asked.size // FP32 // asked.layers, "rounds": asked.rounds, "algorithms": asked.algorithms}
    with lab(asked.hosts, asked.mbit) as made:
        found: dict[str, list[dict[str, list[float]]]]
        found = run_module("dml_runner.bench.overlap_rank", ask, [host.command for host in made.hosts], INTERFACE)
    rows = [_row(algorithm, turns) for algorithm, all_turns in found.items() for turns in all_turns]
    table = _table(asked, rows)
    if asked.page is not None:
        write_page(asked.page, "overlap", f"```\n{table}```\n")
    if asked.form == "table":
        return table
    told: dict[str, Any] = {"hosts": asked.hosts, "mbit": asked.mbit, "bytes": asked.size, "layers": asked.layers, "rounds": asked.rounds}
    return json.dumps({**told, "rows": [asdict(row) for row in rows], "machine": machine()}, indent=2) + "\n"


def _row(algorithm: str, turns: dict[str, list[float]]) -> Row:
    alone = zip(turns["compute"], turns["sum"], turns["both"], strict=True)
    ratio = estimate([both / max(compute, summing) for compute, summing, both in alone])
    compute, summing, both = (estimate(turns[name]).median for name in ("compute", "sum", "both"))
    return Row(algorithm, compute, summing, both, ratio)


def _table(asked: OverlapWords, rows: Sequence[Row]) -> str:
    head = " ".join(f"{name:>13}" for name in ("compute", "communication", "both"))
    lines = [f"{'algorithm':<12} {head} {'of the longer':>14}   95 % interval"]
    for row in rows:
        times = " ".join(f"{duration(each):>13}" for each in (row.compute, row.communication, row.both))
        lines.append(f"{row.algorithm:<12} {times} {row.ratio.median:>13.2f}x   {row.ratio.low:.2f} to {row.ratio.high:.2f}")
    here = machine()
    lines += [
        f"{asked.hosts} hosts at {asked.mbit} Mbit/s each way, {size(asked.size)} of gradients in {asked.layers} buckets;"
        f" median of {asked.rounds} rounds in turn",
        "computing is sleep inside backward; of the longer: a step that does both, over the longer of the two alone",
        told(here),
    ]
    return "".join(f"{line}\n" for line in lines)
