"""Draws in which a rank is killed or stopped: alone, inside a save, frozen, slowed down."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from dml_runner.bench.faults_job import Job, Missed, runner, toy, wait_for
from dml_runner.bench.faults_ledger import Ledger, Record
from dml_runner.checkpoint.names import staging_generation
from dml_runner.generation import read_generation

LATEST_STRIKE = 200
"""Of 300 steps: a fault that comes later would often find the run at its end."""


def kill(ledger: Ledger, name: str, draw: int, ranks: int) -> Record:
    """SIGKILL to a random rank at a random step."""
    dice, run = ledger.dice(name, draw), ledger.room(name, draw) / "run"
    step, rank = dice.randrange(1, LATEST_STRIKE), dice.randrange(ranks)
    with Job(run, runner(toy(run, ranks))) as job:
        os.kill(job.wait_step(step)[rank], signal.SIGKILL)
        recovery_s = _new_step(job, time.monotonic())
        code = job.end()
    same = ledger.same(run, ranks)
    return {"ok": code == 0 and same, "same": same, "code": code, "rank": rank, "step": step, "recovery_s": recovery_s}


def _new_step(job: Job, since: float) -> float:
    """Seconds from ``since`` to the first step that the next generation logs."""
    text = wait_for((job.run / "generations" / "1.json").read_text, "the next start")
    before, old = job.last_step(), (job.run / "metrics.jsonl").stat().st_ino
    resume = read_generation(text).resume
    saved = 0 if resume is None else int(Path(resume).name.removeprefix("step-"))
    wait_for(lambda: job.pids(generation=1), "the ranks of the next start")

    def moved() -> bool:
        cut = saved == before or (job.run / "metrics.jsonl").stat().st_ino != old
        return cut and job.last_step() > saved

    wait_for(moved, "a step after the fault")
    return time.monotonic() - since


def bare(ledger: Ledger, name: str, draw: int, ranks: int) -> Record:
    """SIGKILL to a random rank of a bare script under torchrun, each start in a store of its own."""
    dice, room = ledger.dice(name, draw), ledger.room(name, draw)
    step, rank = dice.randrange(1, LATEST_STRIKE), dice.randrange(ranks)
    script = str(Path(__file__).with_name("faults_bare.py"))
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--max-restarts=3", script, str(room)]
    with Job(room, [sys.executable, "-m", *torchrun], {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}):
        wait_for(lambda: _steps(room, "0") >= step, f"step {step} of the bare script")
        os.kill(int((room / f"pid-{rank}").read_text().split()[1]), signal.SIGKILL)
        since = time.monotonic()
        with contextlib.suppress(Missed):
            wait_for(lambda: _steps(room, "1") > 0, "a step after the fault", seconds=60)
            return {"ok": True, "recovery_s": time.monotonic() - since}
    return {"ok": False, "note": "the bare script did not come back"}


def _steps(room: Path, attempt: str) -> int:
    """The last step of a start of the bare script; 0: none."""
    mine = [line.split()[1] for line in (room / "steps").read_text().splitlines(keepends=True) if line.startswith(f"{attempt} ")]
    return int(mine[-1]) if mine else 0


def inside_save(ledger: Ledger, name: str, draw: int) -> Record:
    """SIGKILL to a random rank while a save is on its way, at a random moment of it."""
    dice, run = ledger.dice(name, draw), ledger.room(name, draw) / "run"
    rank = dice.randrange(2)
    with Job(run, runner(toy(run, 2, "checkpoint.every=10"))) as job:
        pids = job.wait_step(1)
        found = None
        while found is None:
            wait_for(lambda: _staging(run), "a save")
            time.sleep(dice.uniform(0.0, 0.02))
            found = _staging(run)
        os.kill(pids[rank], signal.SIGKILL)
        had = sorted(path.name for path in found.glob("*")) if found.exists() else ["committed"]
        code = job.end()
    same = ledger.same(run, 2)
    return {"ok": code == 0 and same, "same": same, "code": code, "rank": rank, "had": had}


def _staging(run: Path) -> Path | None:
    names = os.listdir(run / "checkpoints")
    return next((run / "checkpoints" / name for name in names if staging_generation(name) is not None), None)


def freeze(ledger: Ledger, name: str, draw: int) -> Record:
    """SIGSTOP to a random rank at a random step."""
    dice, run = ledger.dice(name, draw), ledger.room(name, draw) / "run"
    step, rank = dice.randrange(1, LATEST_STRIKE), dice.randrange(2)
    with Job(run, runner(toy(run, 2))) as job:
        os.kill(job.wait_step(step)[rank], signal.SIGSTOP)
        since = time.monotonic()
        named_s = wait_for(lambda: job.saw(f"rank {rank} is frozen") or 0.0, "the frozen rank's name") - since
        recovery_s = _new_step(job, since)
        code = job.end()
    allowed = re.search(r"and ([\d.]+) s are allowed", job.said)
    same = ledger.same(run, 2)
    found = {"same": same, "code": code, "named_s": named_s, "recovery_s": recovery_s}
    return {"ok": code == 0 and same, "allowed_s": float(allowed[1]) if allowed else None, **found}


def straggler(ledger: Ledger, name: str, draw: int) -> Record:
    """A random rank that gets half the time of its core: how many steps until it is named."""
    dice, run = ledger.dice(name, draw), ledger.room(name, draw) / "run"
    step, rank = dice.randrange(20, 60), dice.randrange(2)
    larger = ["model.hidden=128", "train.steps=100000", "train.eval_every=null", "checkpoint.every=null"]
    with Job(run, runner(toy(run, 2, *larger))) as job:
        victim = job.wait_step(step)[rank]
        over = threading.Event()
        slowing = threading.Thread(target=_halve, args=(victim, over))
        began = job.last_step()
        said = len(job.lines)
        slowing.start()
        try:
            wait_for(lambda: any(f"rank {rank} is slow" in text for _, text in job.lines[said:]), "the slow rank's name", seconds=60)
            steps = job.last_step() - began
        finally:
            over.set()
            slowing.join()
    return {"ok": steps <= 20, "steps": steps}


def _halve(pid: int, over: threading.Event, each_s: float = 0.003) -> None:
    """Stop a process for 3 ms of every 6: less than a step, so that no step is spared."""
    with contextlib.suppress(ProcessLookupError):
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(each_s)
            os.kill(pid, signal.SIGCONT)
            over.wait(each_s)


def flip(ledger: Ledger, name: str, draw: int) -> Record:
    """One random bit of one file of a committed step is turned over; the files take turns."""
    from dml_runner.checkpoint.read import open_step
    from dml_runner.errors import ConfigError

    ledger.untouched(2)
    step = (ledger.folder / "untouched-2-0" / "run" / "checkpoints" / "latest").resolve()
    dice, files = ledger.dice(name, draw), sorted(step.iterdir())
    file = files[draw % len(files)]
    content = file.read_bytes()
    at, bit = dice.randrange(len(content)), dice.randrange(8)
    spoiled = bytearray(content)
    spoiled[at] ^= 1 << bit
    try:
        file.write_bytes(spoiled)
        open_step(step)
    except ConfigError:
        return {"ok": True, "file": file.name}
    finally:
        file.write_bytes(content)
    return {"ok": False, "file": file.name, "note": f"bit {bit} of byte {at} was not noticed"}
