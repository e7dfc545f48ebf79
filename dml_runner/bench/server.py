"""``dml bench server``: a parameter server on shaped hosts, beside the laws of its traffic.

n workers and k servers on links that carry B bytes a second each way at once, weights of S bytes, every worker pushing and pulling all
of them in a step, both at once. Servers on hosts of their own: the busier link is a worker's (S) or a server's (n S / k). Servers on
the hosts of workers: such a host sends its gradients to the other servers, and its share of the weights to the other workers. Beside
them k helpers, hosts that only sum gradients for n workers which hold all weights themselves.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dml_runner.bench.helped_rank import Helped
from dml_runner.bench.machine import machine, told
from dml_runner.bench.network import INTERFACE, headers, lab
from dml_runner.bench.page import write_page
from dml_runner.bench.ranks import run_module
from dml_runner.bench.server_rank import Served
from dml_runner.bench.server_words import Placement, ServerWords, server_words
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.bench.units import duration, size
from dml_runner.comm.laws import helped_seconds

FP32 = 4


@dataclass(frozen=True)
class Row:
    """One placement and number of servers.

    Attributes:
        placement: where the servers live, or that there are helpers.
        servers: how many servers or helpers.
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
    """Bytes of a step on the busiest link, each way, for ``weights`` bytes (Li et al. 2014; Jiang et al. 2020, section 3).

    ``servers`` are helpers where ``placement`` says so.
    """
    if placement == "helpers":
        return weights * helped_seconds(1, workers, servers, 1.0)
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
        for servers in asked.helpers if placement == "helpers" else asked.servers:
            rows.append(on_hosts(asked, placement, servers))
            print(_line(rows[-1]), file=sys.stderr, flush=True)
    table = _table(asked, rows)
    if asked.page is not None:
        write_page(asked.page, "server", f"```\n{table}```\n")
    if asked.form == "table":
        return table
    told = {
        "workers": asked.workers,
        "mbit": asked.mbit,
        "mtu": asked.mtu,
        "bytes": asked.size,
        "buckets": asked.buckets,
        "rounds": asked.rounds,
    }
    return json.dumps({**told, "rows": [asdict(row) for row in rows], "machine": machine()}, indent=2) + "\n"


def on_hosts(asked: ServerWords, placement: Placement, servers: int) -> Row:
    """Measure one placement and number of servers.

    Raises:
        LaunchError: this machine or user cannot have hosts.
        RunFailed: a rank failed.
    """
    elements = asked.size // FP32
    ask: Served | Helped
    if placement == "helpers":
        ask, module = Helped(asked.workers, servers, elements, asked.rounds, INTERFACE), "helped_rank"
    else:
        bucket, dedicated = -(-elements // asked.buckets), placement == "dedicated"
        ask, module = Served(asked.workers, servers, dedicated, elements, bucket, asked.rounds, INTERFACE), "server_rank"
    hosts = asked.workers + (0 if placement == "colocated" else servers)
    with lab(hosts, asked.mbit, mtu=asked.mtu) as made:
        places = [host.command for host in made.hosts]
        found: dict[str, Any] = run_module(f"dml_runner.bench.{module}", asdict(ask), places, INTERFACE)
        rate = made.bytes_per_s
    busiest = law(asked.workers, servers, placement, elements * FP32)
    figures = (max(found[name]) for name in ("counted", "sent", "received"))
    multiple = law(asked.workers, servers, placement, 1.0)
    return Row(placement, servers, estimate(found["seconds"][0]), busiest / rate, busiest, multiple, *figures)


def _table(asked: ServerWords, rows: Sequence[Row]) -> str:
    figures = " ".join(f"{name:>10}" for name in ("time", "law", "in S/B"))
    lines = [f"{'placement':<10} {'k':>7} {figures} {'time/law':>17} {'sent':>9} {'received':>9} {'counted':>9} {'law':>9}"]
    lines += [_line(row) for row in rows]
    here = machine()
    lines += [
        f"{asked.workers} worker hosts and k servers or helpers, links of {asked.mbit} Mbit/s each way with packets of {asked.mtu} bytes",
        f"{size(asked.size)} of weights (S), with servers in {asked.buckets} buckets; median of {asked.rounds} steps",
        f"time/law with its 95 % interval; of a full packet {100 * headers(asked.mtu):.1f} % is headers, which the law leaves out",
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
