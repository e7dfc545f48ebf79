"""What tests of faults share: a job to disturb, hands that disturb it from a thread, ranks that misbehave from inside."""

from __future__ import annotations

import atexit
import bdb
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from helpers import read, rows, small, wait_for

from dml_runner import cli
from dml_runner.bench.faults_evidence import evidence
from dml_runner.data.parts.tokens import TokenData
from dml_runner.launch import local
from dml_runner.launch.rank import be_rank
from dml_runner.worker import Ticket

STEPS = 160
EVERY = 20
FAULT = "fault.json"


def toy(folder: Path, ranks: int, *words: str, run: str = "run") -> list[str]:
    """A job long enough to be disturbed in the middle: 160 steps, saved every 20th, evaluated every 40th."""
    spread = ["strategy=single"] if ranks == 1 else ["strategy=all_reduce", f"hardware.devices_per_node={ranks}"]
    job = [f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "train.eval_every=40", "train.global_batch=8", "launcher.hang_floor_s=2"]
    return small(folder, *spread, *job, *words, run=run)


def train(words: list[str]) -> int:
    """``dml train`` in this process (its ranks are others'); its exit code."""
    return cli.main(["train", *words])


def untouched(tmp: pytest.TempPathFactory, ranks: int, *words: str) -> dict[str, str]:
    """The evidence of a run that nobody disturbs."""
    folder = tmp.mktemp(f"untouched-{ranks}")
    assert train(toy(folder, ranks, *words)) == 0
    return evidence(folder / "run")


# --- hands ---------------------------------------------------------------------------------------------------------------


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do ``act`` in a thread while the block runs; what it raises fails the test."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def last_step(run: Path) -> int:
    """Number of the last row on disk; 0: none."""
    return rows(run)[-1]["step"] if (run / "metrics.jsonl").exists() and rows(run) else 0


def wait_for_step(run: Path, step: int, generation: int = 0) -> list[int]:
    """Wait until ``step`` was logged in ``generation``; the process ids of its ranks."""
    wait_for(lambda: read(run, "ranks.json")[0]["generation"] == generation and last_step(run) >= step)
    return [each["pid"] for each in read(run, "ranks.json")]


def strike(run: Path, step: int, rank: int, number: signal.Signals, generation: int = 0) -> Callable[[], None]:
    """An act: send a signal to a rank once ``step`` was logged in ``generation``."""
    return lambda: os.kill(wait_for_step(run, step, generation)[rank], number)


def strike_here(run: Path, step: int, number: signal.Signals) -> Callable[[], None]:
    """An act: send a signal to this process, which started the ranks or is the only one."""

    def act() -> None:
        wait_for_step(run, step)
        os.kill(os.getpid(), number)

    return act


# --- ranks that misbehave ------------------------------------------------------------------------------------------------


def misbehave(monkeypatch: pytest.MonkeyPatch, folder: Path, rank: int, step: int, act: str, always: bool = False) -> None:
    """Have ``rank`` of the runs under ``folder`` do ``act`` when it fetches the ``step``-th batch of a start, once or at every start."""
    (folder / FAULT).write_text(json.dumps({"rank": rank, "step": step, "act": act, "always": always}))
    monkeypatch.setattr(local, "be_rank", faulty_rank)


def faulty_rank(ticket: Ticket) -> int:
    """A rank as the launcher starts it, whose data makes it misbehave."""
    fault: dict[str, Any] = json.loads((Path(ticket.folder).parent / FAULT).read_text())
    first = json.loads(ticket.generation)["number"] == 0
    if int(os.environ["RANK"]) == fault["rank"] and (fault["always"] or first):
        spoil(fault["step"], fault["act"])
    return be_rank(ticket)


def evaluate_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every rank wait half a second for each batch of an evaluation."""
    monkeypatch.setattr(local, "be_rank", slow_rank)


def slow_rank(ticket: Ticket) -> int:
    """A rank whose held-out data comes slowly."""
    fetch = TokenData.eval_batch

    def eval_batch(self: TokenData, indices: np.ndarray) -> Any:
        time.sleep(0.5)
        return fetch(self, indices)

    TokenData.eval_batch = eval_batch  # type: ignore[method-assign]
    return be_rank(ticket)


def spoil(step: int, act: str) -> None:
    """Have this process do ``act`` when it fetches its ``step``-th batch."""
    fetch, count = TokenData.train_batch, 0

    def train_batch(self: TokenData, picks: np.ndarray) -> Any:
        nonlocal count
        count += 1
        if count == step:
            ACTS[act]()
        return fetch(self, picks)

    TokenData.train_batch = train_batch  # type: ignore[method-assign]


def stand_still() -> None:
    """Do nothing for very long."""
    time.sleep(600)


def fail() -> None:
    """Raise what no code expects."""
    raise ValueError("a row that cannot be")


def jump() -> None:
    """Set the clock an hour on; then, each time it is read, back or on again."""
    now, hours = time.time, iter(range(1, 10**9))
    time.time = lambda: now() + (3600 if next(hours) % 2 else -3600)


def think() -> None:
    """Stop in a debugger and think for three seconds."""

    class Thinker(bdb.Bdb):
        def user_line(self, frame: FrameType) -> None:
            time.sleep(3)
            self.set_continue()

    Thinker().set_trace()
    time.sleep(0)


ACTS: dict[str, Callable[[], None]] = {
    "stand still": stand_still,
    "leave": lambda: os._exit(0),
    "never leave": lambda: atexit.register(stand_still),
    "fail": fail,
    "jump": jump,
}
