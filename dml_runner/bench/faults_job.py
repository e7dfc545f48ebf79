"""A job as users start it, in a process group of its own, and what can be seen of it while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from dml_runner.tracking import jsonl

MARK = "DML_BENCH_MARK"
POLL_S = 0.002
PATIENCE_S = 180.0
T = TypeVar("T")


class Missed(Exception):
    """What was waited for did not come; the text says what."""


def wait_for(condition: Callable[[], T], what: str, seconds: float = PATIENCE_S) -> T:
    """The first true value of ``condition``, looked at every 2 ms; what it cannot read yet counts as false.

    Raises:
        Missed: it did not come within ``seconds``.
    """
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with contextlib.suppress(OSError, ValueError, IndexError):
            if found := condition():
                return found
        time.sleep(POLL_S)
    raise Missed(f"{what}: nothing within {seconds:.0f} s")


class Job:
    """A command that trains into the folder ``run``.

    Attributes:
        run: the run folder.
        lines: (when, text) of every line it said, by the monotonic clock.
    """

    def __init__(self, run: Path, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.run = run
        self.lines: list[tuple[float, str]] = []
        self._mark = uuid.uuid4().hex
        variables = {**os.environ, "OMP_NUM_THREADS": "1", MARK: self._mark, **(environment or {})}
        self.process = subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def said(self) -> str:
        """Everything it said so far."""
        return "\n".join(text for _, text in self.lines)

    def end(self, seconds: float = PATIENCE_S) -> int:
        """Its exit code, once it ended.

        Raises:
            Missed: it did not end in time.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Missed(f"the job did not end within {seconds:.0f} s") from None
        self._reader.join(5)
        return code

    def alive(self) -> list[int]:
        """Its processes that still run, whatever became of their parents."""
        return list(_carrying(f"{MARK}={self._mark}".encode()))

    def wait_alone(self) -> float:
        """Wait until none of its processes runs; when that was, by the monotonic clock."""
        wait_for(lambda: not self.alive(), "its processes did not end")
        return time.monotonic()

    def pids(self, generation: int = 0) -> list[int]:
        """Process ids of the ranks of a generation, once it stands in ranks.json."""
        ranks: list[dict[str, Any]] = json.loads((self.run / "ranks.json").read_text())
        return [rank["pid"] for rank in ranks] if ranks[0]["generation"] == generation else []

    def last_step(self) -> int:
        """Number of the newest training row; 0: none."""
        return max((int(str(row["step"])) for row in jsonl.read(self.run / "metrics.jsonl") if "loss" in row), default=0)

    def wait_step(self, step: int, generation: int = 0) -> list[int]:
        """Wait until ``step`` was logged in ``generation``; the process ids of its ranks.

        Raises:
            Missed: the job ended before, or it took too long.
        """

        def reached() -> list[int]:
            if self.process.poll() is not None:
                raise Missed(f"the job ended with {self.process.returncode} before step {step}: {self.said[-300:]}")
            pids = self.pids(generation)
            return pids if pids and self.last_step() >= step else []

        return wait_for(reached, f"step {step}")

    def saw(self, text: str) -> float | None:
        """When a line with ``text`` was first said, by the monotonic clock."""
        return next((at for at, line in self.lines if text in line), None)


def runner(words: Sequence[str]) -> list[str]:
    """The command line of ``dml`` with ``words``."""
    return [sys.executable, "-m", "dml_runner", *words]


def toy(run: Path, ranks: int, *words: str) -> list[str]:
    """The words of the job that is disturbed: 300 updates of a small GPT, a row each, saved every 25th and evaluated every 100th."""
    job = ["model=gpt_tiny", "data.seq_len=16", "train.global_batch=8", "train.steps=300", "train.log_every=1", "train.eval_every=100"]
    job += ["train.eval_batches=8", "train.sample_tokens=0", "checkpoint.every=25", "launcher.hang_floor_s=2", "hardware=cpu"]
    spread = ["strategy=all_reduce", f"hardware.devices_per_node={ranks}"]
    return ["train", *job, *spread, f"outputs={run.parent.parent}", f"run={run}", *words]


def _carrying(wanted: bytes) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state not in "ZX" and wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
