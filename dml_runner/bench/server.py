"""``dml bench server``: a parameter server on shaped hosts, beside the laws of its traffic.

n workers and k servers on links that carry B bytes a second each way at once, weights of S bytes, every worker pushing and pulling all
of them in a step, both at once. Servers on hosts of their own: the busier link is a worker's (S) or a server's (n S / k). Servers on
the hosts of workers: such a host sends its gradients to the other servers, and its share of the weights to the other workers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dml_runner.bench.machine import machine, told
from dml_runner.bench.network import INTERFACE, lab
from dml_runner.bench.page import write_page
from dml_runner.bench.ranks import run_module
from dml_runner.bench.server_rank import Served
from dml_runner.bench.server_words import Placement, ServerWords, server_words
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.bench.units import duration, size

FP32 = 4


@dataclass(frozen=True)
class Row:
    """One placement and number of servers.

    Attributes:
        placement: where the servers live.
        servers: how many.
        seconds: of a step, by the slowest worker.
        bound: seconds that the busiest link needs for its bytes at the set rate, headers left out.
        law: bytes of a step that the busiest host sends; it receives as many.
        multiple: the same in S, which is the law's time in S/B.
        counted: the same, counted in our code.
        sent: by the interface of the host that sent most, headers included.
        received: by that of the host that received most.
    """

    placement: Placement
    servers: int
    seconds: Estimate
    bound: float
    law: float
    multiple: float
    counted: float
    sent: float
    received: float


def law(workers: int, servers: int, placement: Placement, weights: float) -> float:
    """Bytes of a step on the busiest link, each way, for ``weights`` bytes (Li et al. 2014; Jiang et al. 2020, section 3)."""
    if placement == "dedicated":
        return max(weights, workers * weights / servers)
    return weights * (workers + servers - 2) / servers


def measure(words: Sequence[str]) -> str:
    """Steps of a parameter server on hosts that are made for it, as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
        LaunchError: this machine or user cannot have hosts.
        RunFailed: a rank failed.
    """
    asked = server_words(words)
    rows = []
    for placement in asked.placements:
        for servers in asked.servers:
            rows.append(on_hosts(asked, placement, servers))
            print(_line(rows[-1]), file=sys.stderr, flush=True)
    table = _table(asked, rows)
    if asked.page is not None:
        write_page(asked.page, "server", f"```\n{table}```\n")
    if asked.form == "table":
        return table
    told = {"workers": asked.workers, "mbit": asked.mbit, "bytes": asked.size, "buckets": asked.buckets, "rounds": asked.rounds}
    return json.dumps({**told, "rows": [asdict(row) for row in rows], "machine": machine()}, indent=2) + "\n"


def on_hosts(asked: ServerWords, placement: Placement, servers: int) -> Row:
    """Measure one placement and number of servers.

    Raises:
        LaunchError: this machine or user cannot have hosts.
        RunFailed: a rank failed.
    """
    elements = asked.size // FP32
    bucket = -(-elements // asked.buckets)
    ask = Served(asked.workers, servers, placement == "dedicated", elements, bucket, asked.rounds, INTERFACE)
    with lab(ask.ranks, asked.mbit) as made:
        places = [host.command for host in made.hosts]
        found: dict[str, Any] = run_module("dml_runner.bench.server_rank", asdict(ask), places, INTERFACE)
        rate = made.bytes_per_s
    busiest = law(asked.workers, servers, placement, elements * FP32)
    figures = (max(found[name]) for name in ("counted", "sent", "received"))
    multiple = law(asked.workers, servers, placement, 1.0)
    return Row(placement, servers, estimate(found["seconds"][0]), busiest / rate, busiest, multiple, *figures)


def _table(asked: ServerWords, rows: Sequence[Row]) -> str:
    figures = " ".join(f"{name:>10}" for name in ("time", "law", "in S/B"))
    lines = [f"{'placement':<10} {'servers':>7} {figures} {'time/law':>17} {'sent':>9} {'received':>9} {'counted':>9} {'law':>9}"]
    lines += [_line(row) for row in rows]
    here = machine()
    lines += [
        f"{asked.workers} worker hosts, links of {asked.mbit} Mbit/s each way, {size(asked.size)} of weights (S) in {asked.buckets}"
        f" buckets; median of {asked.rounds} steps",
        "time/law with its 95 % interval; of a full packet 4.4 % is headers, which the law leaves out: 1.05 is a full link",
        "sent, received: by the busiest host in a step, at its interface, headers included; counted: in our code",
        told(here),
    ]
    return "".join(f"{line}\n" for line in lines)


def _line(row: Row) -> str:
    took, least = row.seconds, row.bound
    ratio = f"{took.median / least:.2f} ({took.low / least:.2f}-{took.high / least:.2f})"
    moved = " ".join(f"{size(each):>9}" for each in (row.sent, row.received, row.counted, row.law))
    times = " ".join(f"{each:>10}" for each in (duration(took.median), duration(least), f"{row.multiple:.2f}"))
    return f"{row.placement:<10} {row.servers:>7} {times} {ratio:>17} {moved}"
