"""``dml bench faults``: every promise about faults, put to the test with real signals on real runs.

A draw chooses a rank and a step by dice that a seed throws, waits until the run is there, and strikes. Each draw is written
down as it ends: a measurement that is broken off goes on with ``resume=FOLDER``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dml_runner.bench import faults_cost as cost
from dml_runner.bench import faults_launcher as commands
from dml_runner.bench import faults_ranks as ranks
from dml_runner.bench.faults_job import Missed
from dml_runner.bench.faults_ledger import Ledger, Record
from dml_runner.bench.faults_words import fault_words
from dml_runner.bench.machine import machine, told
from dml_runner.bench.processes import ended_by_sigterm
from dml_runner.errors import ConfigError

Draw = Callable[[Ledger, str, int], Record]


@dataclass(frozen=True)
class Experiment:
    """Draws of one kind and what they shall show.

    Attributes:
        claim: in a line; ``N`` stands for the number of draws.
        draw: makes one draw: ``ok``, and figures.
        figures: keys of figures to sum up, with their unit.
        limit: (figure, most its 95th percentile may be), where the claim sets one.
        draws: how many, whatever is asked; None: as many as asked.
    """

    claim: str
    draw: Draw
    figures: tuple[tuple[str, str], ...] = ()
    limit: tuple[str, float] | None = None
    draws: int | None = None


RECOVERY = (("recovery_s", "s"),)
EXPERIMENTS: dict[str, Experiment] = {
    "kill2": Experiment(
        "a rank of 2 SIGKILLed: same tensors and metrics, recovery p95 <= 5 s",
        partial(ranks.kill, ranks=2),
        RECOVERY,
        ("recovery_s", 5.0),
    ),
    "kill4": Experiment("a rank of 4 SIGKILLed: same tensors and metrics", partial(ranks.kill, ranks=4), RECOVERY),
    "bare4": Experiment("a bare script of 4 ranks under torchrun, to compare", partial(ranks.bare, ranks=4), RECOVERY),
    "term": Experiment("SIGTERM, exit 143, same words again: no step lost, same tensors and metrics", commands.term, (("took_s", "s"),)),
    "save": Experiment("a rank SIGKILLed inside a save: same tensors and metrics", ranks.inside_save),
    "flip": Experiment("one bit turned over in a file of a checkpoint: noticed", ranks.flip, draws=200),
    "freeze": Experiment(
        "a rank SIGSTOPped: named within 2 s floor + 0.5 s, same tensors and metrics",
        ranks.freeze,
        (("named_s", "s"), *RECOVERY),
        ("named_s", 2.5),
    ),
    "launcher": Experiment("the command SIGKILLed: no process left after 5 s, same words go on", commands.launcher, (("gone_s", "s"),)),
    "interrupt2": Experiment("Ctrl-C twice: exit 130, nobody left within 2 s", commands.interrupt_twice, (("gone_s", "s"),)),
    "lock": Experiment("two jobs in one folder: one trains, one is refused", commands.two_in_one_folder),
    "port": Experiment("two jobs at once, torch's port taken: both train", commands.ports_taken),
    "straggler": Experiment("a rank at half speed: named within 20 steps", ranks.straggler, (("steps", "steps"),), ("steps", 20)),
    "saves": Experiment(
        "step time lost around an asynchronous save, of the 60 s to the next: <= 2 %",
        cost.saves,
        (("lost_s", "s"), ("error_s", "s"), ("step_s", "s")),
        draws=1,
    ),
    "verify": Experiment("speed of checking a checkpoint", cost.verification, (("gb_per_s", "GB/s"),), draws=1),
}


def measure(words: Sequence[str]) -> str:
    """The result as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
    """
    asked = fault_words(words, list(EXPERIMENTS))
    ledger = Ledger(asked)
    _say(f"in {ledger.folder}; broken off, it goes on with resume={ledger.folder}")
    with ended_by_sigterm():
        for name in asked.only:
            _run(ledger, name, EXPERIMENTS[name])
    rows = [_sum_up(ledger, name, EXPERIMENTS[name]) for name in asked.only]
    result = {"seed": asked.seed, "experiments": rows, "machine": machine(), "folder": str(ledger.folder)}
    return json.dumps(result, indent=2) + "\n" if asked.form == "json" else _table(result)


def _run(ledger: Ledger, name: str, experiment: Experiment) -> None:
    """Make the draws that are not done yet."""
    draws = experiment.draws or ledger.asked.tries
    done = ledger.records(name)
    for draw in range(draws):
        if draw in done:
            continue
        try:
            record = experiment.draw(ledger, name, draw)
        except (Missed, ConfigError, OSError, LookupError) as error:
            record = {"ok": False, "note": f"{type(error).__name__}: {error}"}
        ledger.add(name, draw, record)
        if record["ok"]:
            ledger.clear(name, draw)
        if draws < 50 or not record["ok"] or draw == draws - 1:
            figures = "  ".join(f"{key} {record[key]:.3g}" for key, _ in experiment.figures if isinstance(record.get(key), float | int))
            _say(f"{name} {draw + 1}/{draws}  {'ok' if record['ok'] else 'NOT OK ' + str(record.get('note', record))}  {figures}")


def _sum_up(ledger: Ledger, name: str, experiment: Experiment) -> dict[str, Any]:
    """One row of the result."""
    records = list(ledger.records(name).values())
    good = sum(bool(record["ok"]) for record in records)
    figures = {key: _spread([record[key] for record in records if record.get(key) is not None]) for key, _ in experiment.figures}
    holds = good == len(records) > 0
    if experiment.limit is not None:
        key, most = experiment.limit
        holds = holds and figures[key]["p95"] <= most
    row: dict[str, Any] = {"name": name, "claim": experiment.claim, "good": good, "draws": len(records), "figures": figures, "holds": holds}
    if name == "kill4" and (bare := ledger.records("bare4")):
        other = _spread([record["recovery_s"] for record in bare.values() if record["ok"]])
        ratio = {key: figures["recovery_s"][key] / other[key] for key in ("p50", "p95")}
        row |= {"of_bare": ratio, "holds": holds and ratio["p95"] <= 1.5}
    return row


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"p50": float("nan"), "p95": float("nan"), "max": float("nan")}
    p50, p95, most = np.percentile(values, (50, 95, 100))
    return {"p50": float(p50), "p95": float(p95), "max": float(most)}


def _table(result: dict[str, Any]) -> str:
    lines = []
    for row in result["experiments"]:
        verdict = "-" if row["name"] in ("bare4", "verify") else "holds" if row["holds"] else "MISSED"
        lines.append(f"{row['name']:<11} {verdict:<7} {row['good']:>3} of {row['draws']:<3} {row['claim']}")
        units = dict(EXPERIMENTS[row["name"]].figures)
        for key, spread in row["figures"].items():
            figures = (
                f"{spread['p50']:.3g}" if row["draws"] == 1 else "  ".join(f"{each} {spread[each]:.3g}" for each in ("p50", "p95", "max"))
            )
            lines.append(f"{'':<29} {key.removesuffix('_s')}: {figures} {units[key]}")
        if "of_bare" in row:
            lines.append(f"{'':<29} of a bare script's: p50 {row['of_bare']['p50']:.2f}  p95 {row['of_bare']['p95']:.2f} (<= 1.5)")
    here = result["machine"]
    lines.append(f"{told(here)}; seed {result['seed']}")
    return "\n".join(lines) + "\n"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
