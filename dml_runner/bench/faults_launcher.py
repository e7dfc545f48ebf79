"""Draws in which the command itself gets a signal, and draws of two commands at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dml_runner.bench.faults_job import Job, runner, toy, wait_for
from dml_runner.bench.faults_ledger import Ledger, Record
from dml_runner.bench.faults_ranks import LATEST_STRIKE

TORCHS_PORT = 29500


def term(ledger: Ledger, name: str, draw: int) -> Record:
    """SIGTERM to the command at a random step, then the same words again."""
    dice, run = ledger.dice(name, draw), ledger.room(name, draw) / "run"
    step = dice.randrange(1, LATEST_STRIKE)
    with Job(run, runner(toy(run, 2))) as job:
        job.wait_step(step)
        since = time.monotonic()
        job.process.send_signal(signal.SIGTERM)
        code = job.end()
        took_s, lost = time.monotonic() - since, job.last_step() - _saved(job)
    with Job(run, runner(toy(run, 2))) as job:
        again = job.end()
    same = ledger.same(run, 2)
    ok = (code, again, lost, same) == (143, 0, 0, True)
    return {"ok": ok, "same": same, "code": code, "again": again, "steps_lost": lost, "took_s": took_s, "step": step}


def _saved(job: Job) -> int:
    return int((job.run / "checkpoints" / "latest").resolve().name.removeprefix("step-"))


def launcher(ledger: Ledger, name: str, draw: int) -> Record:
    """SIGKILL to the command at a random step: how long its processes live; then the same words again."""
    dice, run = ledger.dice(name, draw), ledger.room(name, draw) / "run"
    with Job(run, runner(toy(run, 2))) as job:
        job.wait_step(dice.randrange(1, LATEST_STRIKE))
        since = time.monotonic()
        job.process.kill()
        gone_s = job.wait_alone() - since
    with Job(run, runner(toy(run, 2))) as job:
        again = job.end()
    same = ledger.same(run, 2)
    return {"ok": gone_s <= 5 and again == 0 and same, "gone_s": gone_s, "again": again, "same": same}


def interrupt_twice(ledger: Ledger, name: str, draw: int) -> Record:
    """Ctrl-C twice, 50 ms apart, to every process of the job as a terminal sends it."""
    dice, run = ledger.dice(name, draw), ledger.room(name, draw) / "run"
    with Job(run, runner(toy(run, 2, "train.steps=100000"))) as job:
        job.wait_step(dice.randrange(1, LATEST_STRIKE))
        since = time.monotonic()
        os.killpg(job.process.pid, signal.SIGINT)
        time.sleep(0.05)
        os.killpg(job.process.pid, signal.SIGINT)
        code = job.end()
        took_s = time.monotonic() - since
        gone_s = job.wait_alone() - since
    return {"ok": code == 130 and gone_s <= 2.0, "code": code, "took_s": took_s, "gone_s": gone_s}


def two_in_one_folder(ledger: Ledger, name: str, draw: int) -> Record:
    """The same words started twice at the same moment."""
    run = ledger.room(name, draw) / "run"
    words = runner(toy(run, 2))
    with Job(run, words) as one, Job(run, words) as two:
        codes = sorted([one.end(), two.end()])
        refused = "another job is using this folder" in one.said + two.said
    same = ledger.same(run, 2)
    return {"ok": codes == [0, 2] and refused and same, "codes": codes, "same": same}


def ports_taken(ledger: Ledger, name: str, draw: int) -> Record:
    """Two jobs started at the same moment while somebody listens on the port that torch takes by default."""
    room = ledger.room(name, draw)
    runs = [room / "one", room / "two"]
    with _listening(), Job(runs[0], runner(toy(runs[0], 2))) as one, Job(runs[1], runner(toy(runs[1], 2))) as two:
        both = wait_for(lambda: bool(one.wait_step(1)) and bool(two.wait_step(1)), "a step of both")
        codes = [one.end(), two.end()]
    return {"ok": both and codes == [0, 0], "codes": codes}


@contextmanager
def _listening() -> Iterator[None]:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else listens there: as good
            taken.bind(("", TORCHS_PORT))
            taken.listen()
        yield
