"""``dml bench comm``: bandwidth, latency and bytes of every collective and algorithm, on ranks of this machine or a given world.

Over the loopback no link has a rate of its own, so the bound is drawn from what plain messages reach on the same world: the best of
one rank sending to another while all others wait.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from dml_runner.bench.comm_cases import WIDTH, Case, cases
from dml_runner.bench.comm_plot import write
from dml_runner.bench.comm_rank import Ask, Found, measure_cases
from dml_runner.bench.comm_report import Report, render, rows
from dml_runner.bench.comm_start import run_ranks
from dml_runner.bench.comm_words import CommWords, comm_words
from dml_runner.bench.units import size
from dml_runner.errors import ConfigError, LaunchError, Problem
from dml_runner.seat import Seat, given_by_launcher, seat_from_environment

RANKS = 2


def measure(words: Sequence[str]) -> str:
    """The result as text that ends with a newline: a table, or JSON; on ranks of a launcher other than the first, nothing.

    Raises:
        ConfigError: a word is wrong.
        LaunchError: the launcher's world is another than the words say.
        RunFailed: a rank failed.
    """
    asked = comm_words(words)
    if given_by_launcher(os.environ):
        seat = seat_from_environment(os.environ, 0)
        return _on_given_world(asked, seat)
    ranks = asked.ranks or RANKS
    ask = _ask(asked, ranks)
    return _tell(asked, ask, *run_ranks(ask, [list] * ranks, "lo"), ranks)


def _ask(asked: CommWords, ranks: int) -> Ask:
    """Every size asked for, and before them one element a rank, whose time is the latency."""
    wanted = asked.measured
    chosen = cases(wanted.collectives, wanted.algorithms, (ranks * WIDTH, *asked.sizes), ranks, wanted.node)
    if not chosen:
        raise ConfigError(Problem("algorithms", f"none of these has one of these collectives on {ranks} ranks"))
    return Ask(chosen, wanted.rounds, wanted.node)


def _on_given_world(asked: CommWords, seat: Seat) -> str:
    import torch.distributed as dist

    if asked.ranks not in (None, seat.size):
        hint = "leave it out, or start as many"
        raise LaunchError(Problem("ranks", f"the launcher started {seat.size}", got=str(asked.ranks), hint=hint))
    dist.init_process_group("gloo")
    assert dist.group.WORLD is not None
    ask = _ask(asked, seat.size)
    found, rate = measure_cases(ask, dist.group.WORLD)
    dist.destroy_process_group()
    return _tell(asked, ask, found, rate, seat.size) if seat.rank == 0 else ""


def _tell(asked: CommWords, ask: Ask, found: list[Found], rate: float, ranks: int) -> str:
    chosen: tuple[Case, ...] = ask.cases
    report = Report("comm", ranks, ask.node, ask.rounds, rate, rows(chosen, found, ranks, ask.node, rate))
    notes = (
        f"{ranks} ranks, median of {ask.rounds} rounds in turn; the time of the smallest tensor is the latency",
        "sent: by the busiest rank, counted in our code; the backend's by its law",
        f"bound: at {size(rate)}/s, the best of plain messages from one rank to another while all others wait",
    )
    if asked.measured.to is not None:
        write(report, asked.measured.to, notes)
    return render(report, asked.measured.form, notes)
