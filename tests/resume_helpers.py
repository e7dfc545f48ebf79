"""What tests of resuming share: runs that are stopped on the way, and what must be equal in two runs."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import evaluations, rows

import dml_runner
from dml_runner import cli
from dml_runner.checkpoint.read import open_step
from dml_runner.summary import Summary


@contextmanager
def sigterm_at(folder: Path, step: int) -> Iterator[None]:
    """Send this process SIGTERM as soon as metrics.jsonl of the run folder has a row of ``step`` or a later one."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            with suppress(OSError, ValueError):  # there is no file yet, or its last row is only half written
                if any(row["step"] >= step for row in rows(folder)):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def stop_at(folder: Path, step: int, words: Sequence[str]) -> Summary:
    """Train ``words``, whose run is in ``folder``, and stop soon after ``step``."""
    with sigterm_at(folder, step):
        summary = dml_runner.train(words)
    assert summary.status == "interrupted"
    assert summary.steps >= step
    return summary


def weights(folder: Path, step: int | None = None) -> str:
    """SHA-256 over all tensors, optimizer state included, of a saved step (None: the latest)."""
    name = "latest" if step is None else f"step-{step:08d}"
    committed, digest = open_step(folder / "checkpoints" / name), hashlib.sha256()
    for key in sorted(committed.tensors):
        digest.update(key.encode() + committed.read(key).numpy().tobytes())
    return digest.hexdigest()


def curve(folder: Path, after: int = 0) -> list[tuple[Any, ...]]:
    """What the rows past a step say of the training, times left out."""
    return [tuple(row[key] for key in ("step", "loss", "lr", "grad_norm")) for row in rows(folder) if row["step"] > after]


def held_out(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation."""
    return [(row["step"], row["eval_loss"]) for row in evaluations(folder)]


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Exit code and error lines of ``dml train words``, in this process."""
    capsys.readouterr()
    code = cli.main(["train", *words])
    return code, capsys.readouterr().err.splitlines()


def tree_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file of a folder: time of its last change, and its content's digest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}
