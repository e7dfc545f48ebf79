"""Every strategy, every kind of death: the run ends as promised and nothing hangs. Twenty runs; one of them in the default suite."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import meanwhile, strike, train
from helpers import losses, read, small

STEPS, EVERY, FLOOR_S = 120, 20, 3.0
WORKERS, SERVERS = 3, 2
SERVED = ("strategy=parameter_server", f"strategy.servers={SERVERS}")
COLOCATED = (*SERVED, "strategy.placement=colocated")
ASP, SSP = "strategy.consistency=asp", "strategy.consistency=ssp"
STOP_S = 60.0
"""Seconds a run of a second or two may take with one fault in it: far less than a hang would."""


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        words: of the strategy.
        rank: whom it meets: a worker (0 to 2), or a server of its own (3, 4).
        signal: SIGKILL, or SIGSTOP: a frozen rank.
        restarts: whether all start again from the last commit; else the others go on.
    """

    words: tuple[str, ...]
    rank: int
    signal: signal.Signals
    restarts: bool


KILL, FREEZE = signal.SIGKILL, signal.SIGSTOP
CASES = [
    Case((*SERVED, ASP), 2, KILL, False),
    Case((*SERVED, SSP), 1, FREEZE, False),
    Case(SERVED, 3, KILL, True),
    Case(("strategy=all_reduce", "strategy.algorithm=ring"), 1, KILL, True),
    Case(("strategy=all_reduce", "strategy.algorithm=ring"), 2, FREEZE, True),
    Case(("strategy=all_reduce", "strategy.algorithm=tree"), 0, KILL, True),
    Case(("strategy=all_reduce", "strategy.algorithm=hierarchical"), 2, KILL, True),
    Case(("strategy=all_reduce", "quantize.gradients=int8"), 1, KILL, True),
    Case(("strategy=all_reduce", "strategy.local_steps=4"), 1, FREEZE, True),
    Case(SERVED, 0, KILL, True),
    Case(SERVED, 1, FREEZE, True),
    Case(SERVED, 4, FREEZE, True),
    Case(COLOCATED, 2, KILL, True),
    Case(COLOCATED, 0, KILL, True),
    Case((*SERVED, ASP), 1, FREEZE, False),
    Case((*SERVED, ASP), 4, KILL, True),
    Case((*SERVED, ASP), 0, KILL, True),
    Case((*SERVED, SSP), 2, KILL, False),
    Case((*SERVED, SSP), 3, FREEZE, True),
    Case((*COLOCATED, SSP), 2, KILL, False),
]
USUAL = 1


def told(case: Case) -> str:
    """A case in a few words."""
    return " ".join([*(word.split("=")[1] for word in case.words), case.signal.name, str(case.rank)])


@pytest.mark.parametrize("case", [pytest.param(c, id=told(c), marks=() if n < USUAL else pytest.mark.slow) for n, c in enumerate(CASES)])
def test_a_fault_ends_as_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Case) -> None:
    words = (f"hardware.devices_per_node={WORKERS}", f"train.steps={STEPS}", "train.global_batch=12", "train.eval_every=null")
    rhythm = (f"checkpoint.every={EVERY}", f"launcher.hang_floor_s={FLOOR_S}", "optimizer.lr=3e-3")
    run, at = tmp_path / "run", random.Random(told(case)).randrange(EVERY + 1, STEPS // 2)
    began = time.monotonic()
    with meanwhile(strike(run, at, case.rank, case.signal)):
        assert train(small(tmp_path, *case.words, *words, *rhythm)) == 0
    assert time.monotonic() - began < STOP_S
    said, summary = capsys.readouterr().err, read(run, "summary.json")
    assert (summary["status"], summary["steps"]) == ("completed", STEPS)
    assert summary["restarts"] == int(case.restarts), said
    assert f"rank {case.rank} " in said
    assert ("starting again from step" in said) is case.restarts, said
    assert ("the other workers go on" in said) is not case.restarts, said
    assert losses(run)[-1] < losses(run)[0] - 0.25
