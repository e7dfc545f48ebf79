"""What was measured so far, a line a draw, so that a measurement that was broken off goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

from dml_runner.bench.faults_evidence import evidence
from dml_runner.bench.faults_job import Job, Missed, runner, toy
from dml_runner.bench.faults_words import FaultWords
from dml_runner.tracking import jsonl

Record = dict[str, Any]


class Ledger:
    """A folder with ``results.jsonl`` and the runs of draws that went wrong.

    Attributes:
        asked: the words of the measurement.
        folder: where it is kept.
    """

    def __init__(self, asked: FaultWords) -> None:
        self.asked = asked
        self.folder = (asked.resume or asked.outputs.absolute() / "bench" / f"faults-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / "results.jsonl"

    def records(self, experiment: str) -> dict[int, Record]:
        """Draws of an experiment that are done, by number."""
        found: dict[int, Record] = {}
        for row in jsonl.read(self._path):
            if row.get("experiment") == experiment:
                found[int(str(row["draw"]))] = row
        return found

    def add(self, experiment: str, draw: int, record: Record) -> None:
        """Write a draw down."""
        with self._path.open("a") as file:
            file.write(json.dumps({"experiment": experiment, "draw": draw, **record}) + "\n")

    def dice(self, experiment: str, draw: int) -> Random:
        """The random choices of a draw: the same in every measurement with this seed."""
        return Random(f"{self.asked.seed}/{experiment}/{draw}")

    def room(self, experiment: str, draw: int) -> Path:
        """An empty folder for a draw's runs."""
        room = self.folder / f"{experiment}-{draw}"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir()
        return room

    def clear(self, experiment: str, draw: int) -> None:
        """Remove a draw's folder."""
        shutil.rmtree(self.folder / f"{experiment}-{draw}", ignore_errors=True)

    def untouched(self, ranks: int) -> Record:
        """The evidence of the toy job that nobody disturbs; its run folder stays, as ``untouched-RANKS-0/run``.

        Raises:
            Missed: it failed.
        """
        name = f"untouched-{ranks}"
        known = self.records(name)
        run = self.folder / f"{name}-0" / "run"
        if 0 not in known or not run.exists():
            self.room(name, 0)
            with Job(run, runner(toy(run, ranks))) as job:
                if job.end() != 0:
                    raise Missed(f"the undisturbed run failed: {job.said[-300:]}")
            self.add(name, 0, dict(evidence(run)))
        return {key: value for key, value in self.records(name)[0].items() if key in ("weights", "metrics")}

    def same(self, run: Path, ranks: int) -> bool:
        """Whether a run ended as the undisturbed one did: every tensor bit for bit, every row but its times."""
        return evidence(run) == self.untouched(ranks)
