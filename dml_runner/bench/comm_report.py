"""What the ranks found beside what the laws say: rows, tables and JSON of ``dml bench comm`` and ``dml bench links``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dml_runner.bench.comm_cases import WIDTH, Case
from dml_runner.bench.comm_rank import Found
from dml_runner.bench.machine import machine, told
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.bench.units import duration, size
from dml_runner.comm.laws import hierarchical_seconds, least_seconds, traffic

LEAST_BOUND_S = 1e-6
"""A bound below it is none that anyone could meet: such a row is there for its latency."""


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        collective: what.
        algorithm: how.
        size: bytes of the whole tensor.
        seconds: the median round.
        low: and the ends of its 95 % interval.
        high: the upper one.
        sent: bytes the busiest rank sent, counted in our code.
        wire: bytes the busiest host's interface sent, headers included; None: not read.
        law: bytes that rank must send by this algorithm.
        own_bound: seconds this algorithm takes at least on links of the rate.
        bound: seconds any algorithm takes at least on them.
        of_backend: the backend's seconds over these, round by round; None: it was not measured beside.
    """

    collective: str
    algorithm: str
    size: int
    seconds: float
    low: float
    high: float
    sent: int
    wire: float | None
    law: int
    own_bound: float
    bound: float
    of_backend: Estimate | None


@dataclass(frozen=True)
class Report:
    """What a bench came to.

    Attributes:
        bench: ``comm`` or ``links``.
        ranks: how many.
        node: ranks a node of the hierarchical algorithm.
        rounds: that counted.
        rate: of a link, bytes a second each way: measured by ``comm``, set by ``links``.
        rows: in the order they were measured.
        delay_ms: milliseconds that the switch of ``links`` held each packet.
    """

    bench: str
    ranks: int
    node: int
    rounds: int
    rate: float
    rows: tuple[Row, ...]
    delay_ms: int = 0

    @property
    def name(self) -> str:
        """Of its files, and of its place in a page: ``comm``, ``links`` or ``links_delay``."""
        return f"{self.bench}_delay" if self.delay_ms else self.bench

    def as_json(self) -> dict[str, Any]:
        """With the latency of each pair, which is the time of its smallest tensor, and where it was measured."""
        return {**asdict(self), "latency_s": _latencies(self.rows), "machine": machine()}


def rows(cases: Sequence[Case], found: Sequence[Found], ranks: int, node: int, rate: float) -> tuple[Row, ...]:
    """Each case beside its laws for links of ``rate`` bytes a second."""
    beside = {(case.collective, case.size): each.seconds for case, each in zip(cases, found, strict=True) if case.algorithm == "backend"}
    return tuple(
        _row(case, each, ranks, node, rate, beside.get((case.collective, case.size))) for case, each in zip(cases, found, strict=True)
    )


def _row(case: Case, found: Found, ranks: int, node: int, rate: float, backend: Sequence[float] | None) -> Row:
    took = estimate(found.seconds)
    elements = case.elements(ranks)
    moved = traffic(case.collective, case.algorithm, elements, WIDTH, ranks, node=node)
    phased = case.algorithm == "hierarchical"
    return Row(
        collective=case.collective,
        algorithm=case.algorithm,
        size=elements * WIDTH,
        seconds=took.median,
        low=took.low,
        high=took.high,
        sent=max(found.sent),
        wire=max(found.wire) if found.wire is not None else None,
        law=moved.most_sent,
        own_bound=hierarchical_seconds(elements, WIDTH, ranks, node, rate, rate) if phased else moved.seconds(rate),
        bound=least_seconds(case.collective, elements * WIDTH, ranks, rate),
        of_backend=estimate([theirs / mine for theirs, mine in zip(backend, found.seconds, strict=True)]) if backend else None,
    )


def _latencies(found: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Collective -> algorithm -> seconds of the smallest tensor."""
    told: dict[str, dict[str, float]] = {}
    for row in sorted(found, key=lambda row: -row.size):
        told.setdefault(row.collective, {})[row.algorithm] = row.seconds
    return told


def render(report: Report, form: str, notes: Sequence[str] = ()) -> str:
    """The report as text that ends with a newline: a table with ``notes`` under it, or JSON."""
    if form == "json":
        return json.dumps(report.as_json(), indent=2) + "\n"
    here = machine()
    table = [_head(report), *(_line(report, row) for row in report.rows), *notes]
    table.append(told(here))
    return "".join(f"{line}\n" for line in table)


def _head(report: Report) -> str:
    figures = [f"{name:>10}" for name in ("size", "time", "rate", "bound")]
    last = f" {'to backend':>11}" if report.bench == "links" else ""
    return f"{'collective':<14} {'algorithm':<12} {' '.join(figures)} {'of it':>6} {'sent':>10} {'law':>10}{last}"


def _line(report: Report, row: Row) -> str:
    moved = row.sent if row.wire is None else row.wire
    tiny = row.own_bound < LEAST_BOUND_S
    bound, part = ("-", "-") if tiny else (duration(row.own_bound), f"{row.own_bound / row.seconds:.0%}")
    told = (size(row.size), duration(row.seconds), f"{size(row.size / row.seconds)}/s", bound)
    figures = " ".join(f"{each:>10}" for each in told)
    ratio = row.of_backend if report.bench == "links" and row.algorithm != "backend" else None
    last = f" {ratio.median:>10.2f}x" if ratio is not None else ""
    return f"{row.collective:<14} {row.algorithm:<12} {figures} {part:>6} {size(moved):>10} {size(row.law):>10}{last}"
