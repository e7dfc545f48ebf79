"""What ``to=`` keeps of ``dml bench comm`` and ``dml bench links``: the plot, with the bound drawn in, beside JSON or a page's table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dml_runner.bench.comm_report import Report, Row, render
from dml_runner.bench.page import write_page

COLOURS = {"backend": "#555555", "ring": "#1f77b4", "tree": "#2ca02c", "hierarchical": "#d62728"}
DOTS = 120


def write(report: Report, to: Path, notes: Sequence[str]) -> None:
    """Into a folder, which is made, as ``NAME.json`` and ``NAME.png``; into a page (``.md``) as a table, with ``PAGE-NAME.png`` beside it.

    Raises:
        ConfigError: the page has no place for the table.
    """
    name = report.name
    if to.suffix == ".md":
        picture = f"{to.stem}-{name}.png"
        draw(report, to.parent / picture)
        write_page(to, name, f"```\n{render(report, 'table', notes)}```\n\n![{name}]({picture})\n")
        return
    to.mkdir(parents=True, exist_ok=True)
    draw(report, to / f"{name}.png")
    (to / f"{name}.json").write_text(render(report, "json"))


def draw(report: Report, file: Path) -> None:
    """Draw ``report`` into a PNG file. matplotlib is needed for this alone."""
    from matplotlib.figure import Figure

    collectives = list(dict.fromkeys(row.collective for row in report.rows))
    across = min(3, len(collectives))
    down = -(-len(collectives) // across)
    figure = Figure(figsize=(4.6 * across + 0.6, 3.6 * down + 0.5), layout="constrained")
    for place, collective in enumerate(collectives):
        axes = figure.add_subplot(down, across, place + 1)
        of_it = [row for row in report.rows if row.collective == collective]
        (_sizes if report.bench == "comm" else _bars)(axes, of_it)
        axes.set_title(collective)
    late = f", {report.delay_ms} ms from host to host" if report.delay_ms else ""
    figure.suptitle(f"{report.ranks} ranks, links of {report.rate / 1e6:.0f} MB/s each way{late}")
    figure.savefig(file, dpi=DOTS)


def _sizes(axes: Any, rows: Sequence[Row]) -> None:
    """Bandwidth over size, a line an algorithm; the dashed line is what no algorithm can pass."""
    for algorithm in dict.fromkeys(row.algorithm for row in rows):
        mine = sorted((row.size, row.size / row.seconds / 1e6) for row in rows if row.algorithm == algorithm)
        axes.plot(*zip(*mine, strict=True), marker="o", color=COLOURS[algorithm], label=algorithm)
    bound = sorted({(row.size, row.size / row.bound / 1e6) for row in rows})
    axes.plot(*zip(*bound, strict=True), "k--", linewidth=1, label="bound")
    axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="MB/s of the tensor")
    axes.legend(fontsize="small")


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    """Seconds, a bar an algorithm with its 95 % interval; a mark at each one's own bound, a dashed line at that of all."""
    for place, row in enumerate(rows):
        spread = [[row.seconds - row.low], [row.high - row.seconds]]
        axes.bar(place, row.seconds * 1e3, 0.6, color=COLOURS[row.algorithm], yerr=[[each[0] * 1e3] for each in spread], capsize=3)
        axes.hlines(row.own_bound * 1e3, place - 0.4, place + 0.4, color="black", linewidth=2, label="its bound" if place == 0 else None)
    axes.axhline(rows[0].bound * 1e3, color="black", linestyle="--", linewidth=1, label="bound of any")
    axes.set_xticks(range(len(rows)), [row.algorithm for row in rows])
    axes.set_ylabel("ms")
    axes.legend(fontsize="small")
