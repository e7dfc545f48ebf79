"""What tests of running share: `dml` as a command or in this process, small jobs, run folders read back, ranks without a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from dml_runner.launch.request import main_left_out, preload

DML = (sys.executable, "-m", "dml_runner")
SMALL = ("model=gpt_tiny", "hardware=cpu", "data=text", "data.seq_len=16", "train.steps=6", "train.sample_tokens=0", "train.log_every=1")
"""A job of half a second; `small` adds its text and its folder."""
MARK = "TEST_MARK"
"""Variable by which the processes of one command are found, whatever became of their parents."""


# --- words ---------------------------------------------------------------------------------------------------------------


@cache
def english(characters: int) -> str:
    """The beginning of the help topics that ship with Python."""
    return "\n".join(pydoc_data.topics.topics.values())[:characters]


def write_text(folder: Path, characters: int = 20_000) -> Path:
    """A text to train on; its last tenth, 125 samples of 16 where there are 20,000 characters, is held out."""
    path = folder / f"text-{characters}.txt"
    path.write_text(english(characters))
    return path


def small(folder: Path, *words: str, run: str = "run") -> list[str]:
    """The words of a small job under ``folder``, in the run folder ``folder/run``."""
    text = folder / "text-20000.txt"
    if not text.exists():
        write_text(folder)
    return [*SMALL, f"data.path={text}", f"outputs={folder / 'outputs'}", f"run={folder / run}", *words]


def on_ranks(ranks: int) -> list[str]:
    """The words that spread a job over ``ranks``."""
    return ["strategy=single"] if ranks == 1 else ["strategy=all_reduce", f"hardware.devices_per_node={ranks}"]


# --- running -------------------------------------------------------------------------------------------------------------


def dml(*words: str, command: tuple[str, ...] = DML, timeout: float = 100, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run ``dml words`` and return how it ended; ``more`` goes to subprocess.run (cwd, env)."""
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=timeout, **more)


def train(folder: Path, *words: str, run: str = "run") -> Path:
    """Train a small job from Python (its ranks are processes; a single one is this process) and return its folder."""
    import dml_runner

    with nullcontext() if "strategy=all_reduce" in words else one_core():
        assert dml_runner.train(small(folder, *words, run=run)).status == "completed"
    return folder / run


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process to one core: on a busy machine two threads wait for each other longer than they compute."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def marked_environment() -> tuple[dict[str, str], str]:
    """An environment, and the mark in it by which ``alive`` finds every process that inherits it."""
    mark = uuid.uuid4().hex
    return {**os.environ, MARK: mark}, mark


def alive(mark: str, within_s: float = 3.0) -> list[str]:
    """Command lines of the processes that carry ``mark`` and have not ended ``within_s`` seconds from now."""
    ends = time.monotonic() + within_s
    while (found := list(_carrying(mark))) and time.monotonic() < ends:
        time.sleep(0.05)
    return found


def _carrying(mark: str) -> Iterator[str]:
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue


@contextmanager
def started(*words: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """``dml words`` running in the background; killed in the end if it still runs."""
    process = subprocess.Popen([*DML, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of ``condition``; what it cannot read yet counts as false."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            if found := condition():
                return found
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"nothing within {seconds:.0f} s")


# --- run folders ---------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of training steps."""
    return [row for row in _lines(folder) if "loss" in row]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of evaluations."""
    return [row for row in _lines(folder) if "eval_loss" in row]


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The loss of each logged step."""
    return [row["loss"] for row in rows(folder)]


def read(folder: Path, name: str) -> Any:
    """A JSON file of a run folder: summary.json, ranks.json, generations/0.json."""
    return json.loads((folder / name).read_text())


# --- ranks without a run -------------------------------------------------------------------------------------------------


def in_group(size: int, work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(world, *arguments)`` returns on each rank of a group of ``size`` processes over gloo."""
    preload()
    with main_left_out(), ProcessPoolExecutor(size, multiprocessing.get_context("forkserver")) as pool:
        store = str(folder / f"store-{uuid.uuid4().hex}")
        return [each.result(60) for each in [pool.submit(_member, work, rank, size, store, arguments) for rank in range(size)]]


def _member(work: Callable[..., Any], rank: int, size: int, store: str, arguments: tuple[Any, ...]) -> Any:
    import torch
    import torch.distributed as dist

    from dml_runner.comm.world import close_world, open_world

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    world = open_world(rank, size, torch.device("cpu"), "gloo", dist.FileStore(store, size), timedelta(seconds=30))
    try:
        return work(world, *arguments)
    finally:
        close_world(world)
