"""``dml bench parity``: the same job under every layout, every family and every way to recompute, beside one process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from dml_runner.bench.machine import machine, told
from dml_runner.bench.page import write_page
from dml_runner.bench.parity_cells import RANKS, STEPS, Cell, ways, write_texts
from dml_runner.bench.parity_runs import FEW, Found, Matrix
from dml_runner.bench.parity_words import ParityWords, parity_words
from dml_runner.bench.pool import ranks

Pairs = Mapping[tuple[str, str], Found]
"""What was found, by layout and family."""


def measure(words: Sequence[str]) -> str:
    """All cells, as text that ends with a newline: tables, or JSON.

    Raises:
        ConfigError: a word is wrong.
    """
    asked = parity_words(words)
    found: dict[tuple[str, str], Found] = {}
    with tempfile.TemporaryDirectory(prefix="dml-") as name, ranks(RANKS, Path(name)) as pool:
        write_texts(Path(name))
        matrix = Matrix(pool, Path(name))
        for family in asked.families:
            for layout in asked.layouts:
                found[layout, family] = matrix.find(layout, family, ways(family, asked.recompute))
    table = tables(asked, found)
    if asked.page is not None:
        write_page(asked.page, "parity", table)
    if asked.form == "table":
        return table
    cells = [{"layout": layout, "family": family, **asdict(each)} for (layout, family), each in found.items()]
    return json.dumps({"steps": STEPS, "machine": machine(), "cells": cells}, indent=2) + "\n"


def tables(asked: ParityWords, found: Pairs) -> str:
    """What was found, in Markdown."""
    compared = sum(len(each.losses) for each in found.values())
    pairs = [equal for each in found.values() for equal in each.dropped.values()]
    refused = _refused(found)
    letters = {reason: chr(ord("a") + number) for number, reason in enumerate(refused)}
    recomputed = ", ".join(asked.recompute)
    lines = [
        f"Loss: the largest difference to one process, of any of {STEPS} steps of AdamW or of the held-out loss behind them, over",
        f"all ways to recompute that are allowed ({recomputed}): {compared} jobs.",
        "",
        *_table(asked, {key: _loss(each, letters) for key, each in found.items()}),
        "",
        f"Weights: the largest difference of any weight after {STEPS} steps of SGD with momentum, nothing recomputed.",
        "",
        *_table(asked, {key: "-" if each.weights is None else f"{each.weights:.0e}" for key, each in found.items()}),
        "",
        f"Bits: with dropout, {sum(pairs)} of {len(pairs)} jobs that recompute have the losses, gradient norms and weights of the same",
        f"layout that keeps all, to the last bit, over {FEW} steps.",
        "",
    ]
    if refused:
        lines += ["Refused by the plan:", "", *(f"- {letters[reason]}: {reason} ({_where(refused[reason])})" for reason in refused), ""]
    return "".join(f"{line}\n" for line in [*lines, told(machine())])


def _loss(found: Found, letters: Mapping[str, str]) -> str:
    marks = sorted({letters[reason] for reasons in found.refused.values() for reason in reasons})
    gap = [f"{max(found.losses.values()):.0e}"] if found.losses else []
    return " ".join([*gap, *([",".join(marks)] if marks else [])])


def _refused(found: Pairs) -> dict[str, list[Cell]]:
    """Reason -> the cells it is given for."""
    by_reason: dict[str, list[Cell]] = {}
    for (layout, family), each in found.items():
        for way, reasons in each.refused.items():
            for reason in reasons:
                by_reason.setdefault(reason, []).append(Cell(layout, family, way))
    return by_reason


def _where(cells: Sequence[Cell]) -> str:
    """Layouts, families and ways of some cells, each once."""
    parts = ([cell.layout for cell in cells], [cell.family for cell in cells], [cell.recompute for cell in cells])
    return "; ".join(", ".join(dict.fromkeys(part)) for part in parts)


def _table(asked: ParityWords, cells: Mapping[tuple[str, str], str]) -> list[str]:
    head = ["layout", *asked.families]
    rows = [[layout, *(cells[layout, family] for family in asked.families)] for layout in asked.layouts]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
