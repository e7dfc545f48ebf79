"""Start the ranks of ``dml bench comm`` and ``dml bench links``, and hear what they found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from dml_runner.bench.comm_rank import Ask, Found
from dml_runner.bench.ranks import run_module


def run_ranks(ask: Ask, places: Sequence[Callable[[list[str]], list[str]]], interface: str) -> tuple[list[Found], float]:
    """Have a rank in each of ``places`` measure ``ask``; what they found, and the rate of a link in bytes a second.

    Args:
        places: each makes of a command the command that runs it there.
        interface: by which the ranks reach each other.

    Raises:
        RunFailed: a rank failed; with its last line.
    """
    told = run_module("dml_runner.bench.comm_rank", asdict(ask), places, interface)
    return [Found(**each) for each in told["found"]], told["rate"]
