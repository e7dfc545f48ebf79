"""``dml bench links``: hosts with links of a set rate on one machine, and what collectives, or any job, do on them.

Seconds stand beside the bound of each algorithm, and the bytes that the interfaces counted beside its law: on a machine whose cores
all hosts share, bytes are the witness and time comes second.
"""

from __future__ import annotations

from collections.abc import Sequence

from dml_runner.bench.comm_cases import cases
from dml_runner.bench.comm_plot import write
from dml_runner.bench.comm_rank import Ask
from dml_runner.bench.comm_report import Report, render, rows
from dml_runner.bench.comm_start import run_ranks
from dml_runner.bench.comm_words import LinkWords, link_words
from dml_runner.bench.network import INTERFACE, lab
from dml_runner.bench.units import duration
from dml_runner.errors import ConfigError, Problem


def measure(words: Sequence[str]) -> str:
    """The collectives on shaped hosts, as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
        LaunchError: this machine or user cannot have hosts.
        RunFailed: a rank failed.
    """
    asked = link_words(words)
    report = on_links(asked)
    notes = _notes(asked, report)
    if asked.measured.to is not None:
        write(report, asked.measured.to, notes)
    return render(report, asked.measured.form, notes)


def on_links(asked: LinkWords) -> Report:
    """Measure what ``asked`` says on hosts that are made for it and removed again.

    Raises:
        ConfigError: nothing of it exists on so many hosts.
        LaunchError: this machine or user cannot have hosts.
        RunFailed: a rank failed.
    """
    wanted = asked.measured
    chosen = cases(wanted.collectives, wanted.algorithms, (asked.size,), asked.hosts, wanted.node)
    if not chosen:
        raise ConfigError(Problem("algorithms", f"none of these has one of these collectives on {asked.hosts} hosts"))
    with lab(asked.hosts, asked.mbit, asked.delay_ms / 1000) as made:
        ask = Ask(chosen, wanted.rounds, wanted.node, INTERFACE)
        found, _ = run_ranks(ask, [host.command for host in made.hosts], INTERFACE)
        rate = made.bytes_per_s
    told = rows(chosen, found, asked.hosts, wanted.node, rate)
    return Report("links", asked.hosts, wanted.node, wanted.rounds, rate, told, asked.delay_ms)


def _notes(asked: LinkWords, report: Report) -> list[str]:
    lines = [
        f"{asked.hosts} hosts at {asked.mbit} Mbit/s each way, median of {report.rounds} rounds in turn; of a full packet 4.4 % is headers",
        *([f"each packet takes {asked.delay_ms} ms, which no bound here counts"] if asked.delay_ms else []),
        "bound: of this algorithm; sent: by the busiest host, counted at its interface, headers included",
    ]
    lines += [f"bound of any {name}: {duration(bound)}" for name, bound in {row.collective: row.bound for row in report.rows}.items()]
    if any(row.algorithm == "hierarchical" for row in report.rows):
        lines.append(f"hierarchical: nodes of {report.node} hosts, whose links inside a node are no faster here")
    for row in report.rows:
        if row.of_backend is not None and row.algorithm != "backend":
            ratio = row.of_backend
            spread = f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
            lines.append(f"{row.collective} by {row.algorithm}: {ratio.median:.3f} times as fast as the backend's, {spread}")
    return lines
