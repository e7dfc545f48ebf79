"""What keeping everything costs: steps around an asynchronous save, and the check of a checkpoint."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dml_runner import config, data
from dml_runner.bench.driving import drive
from dml_runner.bench.faults_ledger import Ledger, Record
from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.saver import Saver
from dml_runner.checkpoint.verify import verify
from dml_runner.comm.world import World
from dml_runner.engines.assemble import assemble
from dml_runner.facts import task_of
from dml_runner.hardware.detect import detect
from dml_runner.planning.plan import lay_out

SAVES, BETWEEN, WARM_UP = 60, 24, 48
"""Saves that are timed, steps from one to the next, steps before the first that counts."""
GAP_S = 60.0
"""Seconds between saves that a save's cost is set against."""
SIZE = 2**28
"""Bytes of each of the two files whose check is timed."""


class Stamps:
    """A tracker that notes when each row came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def log(self, row: Mapping[str, object]) -> None:
        """A step's row, just before what is due at its border."""
        if "loss" in row:
            self.at.append(time.perf_counter())

    def note(self, text: str) -> None:
        """Notes are not timed."""

    def finish(self, summary: Mapping[str, object]) -> None:
        """Nothing is held."""


def saves(ledger: Ledger, name: str, draw: int) -> Record:
    """Time lost around a save: the steps of its first half against those of the second, when the save is long done."""
    stamps = Stamps()
    _train(ledger, ledger.room(name, draw), stamps)
    steps = [after - before for before, after in zip(stamps.at, stamps.at[1:], strict=False)]
    lost, half = [], BETWEEN // 2
    for save in range(WARM_UP, WARM_UP + SAVES * BETWEEN, BETWEEN):
        first, second = steps[save - 1 : save - 1 + half], steps[save - 1 + half : save - 1 + BETWEEN]
        lost.append(sum(first) - sum(second))
    timed = steps[WARM_UP - 1 :]
    lost_s, error_s = statistics.mean(lost), statistics.stdev(lost) / len(lost) ** 0.5
    found = {"lost_s": lost_s, "error_s": error_s, "saves": len(lost), "step_s": statistics.mean(timed), "wall_s": sum(timed)}
    return {"ok": lost_s / GAP_S <= 0.02, **found}


def _train(ledger: Ledger, room: Path, tracker: Stamps) -> None:
    """The job of recipes/shakespeare_char.yaml in this process, with a row each step."""
    source = ["data=text", f"data.path={ledger.asked.data}"] if ledger.asked.data else ["data=stdlib_text"]
    job = ["lr_schedule=cosine", "lr_schedule.warmup_steps=100", "lr_schedule.final_ratio=0.1", "hardware=cpu", f"outputs={room}"]
    job += ["optimizer.lr=1e-3", "optimizer.weight_decay=0.1", "optimizer.beta1=0.9", "optimizer.beta2=0.99", "train.clip_norm=1.0"]
    length = [f"train.steps={WARM_UP + (SAVES + 1) * BETWEEN}", "train.log_every=1", "train.eval_batches=1", f"checkpoint.every={BETWEEN}"]
    run = config.compose([*source, *job, *length, "train.global_batch=12"]).run
    facts = data.prepare(run.data, task_of(run.model), room / "cache")
    layout = lay_out(run, facts, detect(run.hardware))
    world = World(0, 1, torch.device("cpu"))
    opened = data.open_data(run.data, task_of(run.model), facts, run.seed)
    with Saver(room / "checkpoints", 0, 1, 0, run.checkpoint.keep) as saver:
        drive(run, layout, facts, opened, assemble(run, facts, layout, world), world, room, tracker, saver)


def verification(ledger: Ledger, name: str, draw: int) -> Record:
    """Speed at which a step of two files of 256 MiB is checked, its pages in memory."""
    room = ledger.room(name, draw)
    ranks = [Saver(room, rank, 2, 0, 1) for rank in range(2)]
    for rank, saver in reversed(list(enumerate(ranks))):
        shape = (SIZE // 4,)
        saver.save(1, [Piece(f"model/{rank}", shape, (0,), torch.rand(shape))], {})
    for saver in ranks:
        saver.wait()
    checked: list[Any] = [verify(room / "step-00000001") for _ in range(3)]
    ledger.clear(name, draw)
    return {"ok": True, "gb_per_s": max(each.gb_per_s for each in checked), "bytes": checked[0].bytes}
