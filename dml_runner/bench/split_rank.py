"""One rank of ``dml bench split``: the runner's loop and a script written by hand, over the same job, and what a step sends."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from dml_runner import data as data_room
from dml_runner.bench.driving import drive, live
from dml_runner.bench.pool import Job, job_of
from dml_runner.bench.ranks import Place, be_rank, carried
from dml_runner.bench.split_by_hand import Tell, by_columns, by_pipelining
from dml_runner.bench.split_words import WARM_UP
from dml_runner.comm.world import World
from dml_runner.engines.assemble import assemble
from dml_runner.facts import task_of

Side = Callable[[Job, Place, Tell], None]
BY_HAND: dict[str, Side] = {"pipeline": by_pipelining, "tensor": by_columns}


class Clock:
    """Notes the end of every optimizer step of this process while it is entered: what both sides have in common.

    Args:
        interface: whose sent bytes are noted too; None: nobody's.

    Attributes:
        ends: seconds of the host's clock.
        sent: bytes that the interface had sent by then.
    """

    def __init__(self, interface: str | None = None) -> None:
        self.ends: list[float] = []
        self.sent: list[int] = []
        self._interface = interface

    def __enter__(self) -> Clock:
        self._hook = register_optimizer_step_post_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _note(self, *_: object) -> None:
        self.ends.append(time.perf_counter())
        if self._interface is not None:
            self.sent.append(carried(self._interface)[0])

    @property
    def step_s(self) -> float:
        """Seconds an update took, on average over all behind the warm-up."""
        return (self.ends[-1] - self.ends[WARM_UP - 1]) / (len(self.ends) - WARM_UP)


def by_runner(job: Job, place: Place, tell: Tell, rows: list[dict[str, Any]] | None = None) -> None:
    """``TrainLoop`` and ``SplitEngine`` as ``dml train`` puts them together.

    Args:
        rows: filled on rank 0 with those of metrics.jsonl.
    """
    world = World(place.rank, place.size, torch.device("cpu"), place.group, store=place.store)
    engine = assemble(job.run, job.facts, job.layout, world)
    source = data_room.open_data(job.run.data, task_of(job.run.model), job.facts, job.run.seed)
    with tempfile.TemporaryDirectory(prefix="dml-") as name:
        folder = Path(name)
        tracker = live(job.run, job.layout, folder) if place.rank == 0 else None
        drive(job.run, job.layout, job.facts, source, engine, world, folder, tracker)
        engine.close()
        if tracker is not None:
            tracker.finish({})
            found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            if rows is not None:
                rows += [row for row in found if "loss" in row]


def work(told: Any, place: Place) -> Any:
    """What both sides took in each turn, their first losses, and what the steps of some jobs sent."""
    found: dict[str, Any] = {"counted": [_counted(words, place, told["interface"]) for words in told["counted"]]}
    if told["pairs"]:
        found |= {"losses": _losses(told["what"], told["check"], place), "turns": _turns(told, place)}
    return found


def _turns(told: Any, place: Place) -> dict[str, list[float]]:
    """Seconds an update of each side in each turn, by the slowest rank; the order turns round from one pair to the next."""
    sides: dict[str, Side] = {"dml": by_runner, "by hand": BY_HAND[told["what"]]}
    turns: dict[str, list[float]] = {name: [] for name in sides}
    job = _job(told["job"])
    for number in range(told["pairs"] + 1):
        for name in list(sides) if number % 2 else reversed(sides):
            gc.collect()
            place.barrier()
            with Clock() as clock:
                sides[name](job, place, _nobody)
            slowest = float(place.gather(torch.tensor(clock.step_s, dtype=torch.float64)).max())
            if number:  # the first pair warms up
                turns[name].append(slowest)
    return turns


def _losses(what: str, words: Sequence[str], place: Place) -> dict[str, list[float]]:
    """Of each update of a short job, by both sides."""
    job, rows, by_hand = _job(words), [], []  # type: ignore[var-annotated]
    by_runner(job, place, _nobody, rows)
    BY_HAND[what](job, place, lambda loss: by_hand.append(float(loss)))
    everyone = place.gather(torch.tensor(by_hand or [0.0] * job.layout.steps, dtype=torch.float64))
    return {"dml": [row["loss"] for row in rows], "by hand": everyone[-1].tolist()}


def _counted(words: Sequence[str], place: Place, interface: str | None) -> dict[str, Any]:
    """What the last updates of a job sent: as counted, and by this rank's interface on average."""
    rows: list[dict[str, Any]] = []
    with Clock(interface) as clock:
        by_runner(_job(words), place, _nobody, rows)
    wire = (clock.sent[-1] - clock.sent[0]) / (len(clock.sent) - 1) if clock.sent else None
    return {"bytes": [row["comm_bytes"] for row in rows], "wire": wire}


def _job(words: Sequence[str]) -> Job:
    with tempfile.TemporaryDirectory(prefix="dml-") as cache:
        return job_of(words, Path(cache))


def _nobody(loss: Tensor) -> None:
    """Nobody asks for the losses."""


if __name__ == "__main__":
    be_rank(sys.argv[1:], work)
