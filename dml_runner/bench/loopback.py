"""``dml bench loopback``: push and pull of a parameter server over the loopback, beside plain messages of the same sizes.

Steps and plain messages take turns on the same connections of the same processes, so what the machine does meanwhile meets both. A
step does more than move: the server sums gradients and updates weights, the workers clear gradients. Its two directions overlap.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dml_runner.bench.machine import machine
from dml_runner.bench.page import write_page
from dml_runner.bench.ranks import here, run_module
from dml_runner.bench.server_rank import Served
from dml_runner.bench.server_words import LoopbackWords, loopback_words
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.bench.units import size

FP32 = 4


@dataclass(frozen=True)
class Row:
    """One number of workers and buckets.

    Attributes:
        workers: how many, with one server.
        buckets: messages of a push.
        message: bytes of each.
        rate: bytes a second that pushes and pulls of all workers move together.
        raw: the same by plain messages.
        ratio: of the two, round by round.
    """

    workers: int
    buckets: int
    message: int
    rate: float
    raw: float
    ratio: Estimate


def measure(words: Sequence[str]) -> str:
    """The rates as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
        RunFailed: a rank failed.
    """
    asked = loopback_words(words)
    rows = [_row(asked, workers, buckets) for workers in asked.workers for buckets in asked.buckets]
    table = _table(asked, rows)
    if asked.page is not None:
        write_page(asked.page, "loopback", f"```\n{table}```\n")
    if asked.form == "table":
        return table
    told = {"bytes": asked.size, "rounds": asked.rounds, "rows": [asdict(row) for row in rows]}
    return json.dumps({**told, "machine": machine()}, indent=2) + "\n"


def _row(asked: LoopbackWords, workers: int, buckets: int) -> Row:
    elements = asked.size // FP32
    bucket = -(-elements // buckets)
    ask = Served(workers, 1, True, elements, bucket, asked.rounds, raw=True)
    found: dict[str, Any] = run_module("dml_runner.bench.server_rank", asdict(ask), [here] * ask.ranks, "lo")
    steps, plain = found["seconds"]
    moved = 2 * workers * elements * FP32
    ratio = estimate([theirs / ours for ours, theirs in zip(steps, plain, strict=True)])
    return Row(workers, buckets, bucket * FP32, moved / estimate(steps).median, moved / estimate(plain).median, ratio)


def _table(asked: LoopbackWords, rows: Sequence[Row]) -> str:
    lines = [f"{'workers':>7} {'buckets':>7} {'message':>10} {'push+pull':>11} {'plain':>11} {'ratio':>6}   95 % interval"]
    for row in rows:
        rates = " ".join(f"{size(each) + '/s':>11}" for each in (row.rate, row.raw))
        lines.append(
            f"{row.workers:>7} {row.buckets:>7} {size(row.message):>10} {rates} {row.ratio.median:>6.2f}   "
            f"{row.ratio.low:.2f} to {row.ratio.high:.2f}"
        )
    here_is = machine()
    lines += [
        f"one server, {size(asked.size)} of weights, median of {asked.rounds} rounds in turn; bytes both ways of all workers together",
        "plain: the same messages by gloo send and receive on the same connections, all to the server, then all back",
        f"{here_is['cpu']}, {here_is['cores']} cores; python {here_is['python']}, torch {here_is['torch']}",
    ]
    return "".join(f"{line}\n" for line in lines)
