"""The runs of ``dml bench finetune``: made once, and what they came to."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dml_runner.data.parts.labelled_store import load_labelled
from dml_runner.errors import ConfigError, Interrupted, Problem, Terminated
from dml_runner.files import write_json
from dml_runner.job import read_job_file
from dml_runner.launch import command
from dml_runner.loops.stop import Reason
from dml_runner.run_folder import RunFolder
from dml_runner.summary import read_summary

OTHER = ("name", "head", "pretrained", "frozen", "classes", "dropout")
"""Keys of a model that are not its shape."""


@dataclass(frozen=True)
class Finished:
    """A run that came to its end.

    Attributes:
        folder: of the run.
        steps: updates it made.
        wall_s: seconds it took.
        parameters: elements of its model, the head's included.
        accuracy: of the held-out data; None where nobody measured it.
    """

    folder: Path
    steps: int
    wall_s: float
    parameters: int
    accuracy: float | None


def finished(folder: Path) -> Finished:
    """What the run of ``folder`` came to.

    Raises:
        ConfigError: it did not come to its end.
    """
    run = RunFolder(folder)
    summary = read_summary(run)
    if summary is None or summary.status != "completed":
        raise ConfigError(Problem("run", "did not come to its end", got=str(folder)))
    plan = json.loads(run.generation(run.next_generation() - 1).read_text())["plan"]
    accuracy = (summary.eval or {}).get("eval_accuracy")
    return Finished(folder, summary.steps, summary.wall_s, plan["parameters"] + plan["head_parameters"], accuracy)


def trained(measurement: Path, name: str, words: Sequence[str]) -> Finished:
    """The run ``name`` of a measurement: trained by ``words``, unless the same words made it before; one that was broken off starts anew.

    Raises:
        DmlError: it was refused, failed, or was ended from outside.
    """
    folder, record = measurement / name, measurement / f"{name}.json"
    whole = [*words, f"outputs={measurement}", f"run={folder}"]
    if record.is_file() and json.loads(record.read_text()) == whole:
        return finished(folder)
    record.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    reason, _ = command.train(whole, time.time())
    if reason is not Reason.NONE:
        ended = Problem(name, "was ended from outside", hint=f"resume={measurement} goes on")
        raise (Terminated if reason is Reason.TERMINATED else Interrupted)(ended)
    write_json(record, whole)
    return finished(folder)


def shape(origin: Finished) -> dict[str, str]:
    """Keys of a model with the values that give it the shape of a run's."""
    values = read_job_file(origin.folder / "job.yaml").run.model.model_dump(mode="json")
    return {key: json.dumps(value) for key, value in values.items() if key not in OTHER}


def chances(folder: Path) -> tuple[int, float]:
    """Held-out texts of a run on labelled texts, and the share of them that has the most frequent label."""
    store = load_labelled(Path(read_job_file(folder / "job.yaml").data.store))
    assert store is not None, "a run has just read it"
    labels = store.numbers("eval")
    return len(labels), float(np.bincount(labels).max() / len(labels))
