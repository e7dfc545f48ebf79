"""A sweep: its trials one after another, each a process, a world and a folder of its own, and a table on top."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dml_runner import config
from dml_runner.errors import ConfigError, Interrupted, RunFailed, Terminated
from dml_runner.files import slug, write_atomically
from dml_runner.launch.signals import handlers_kept
from dml_runner.run_folder import RunFolder
from dml_runner.seat import die_with_parent

COLUMNS = ("status", "steps", "final_loss", "eval_loss", "wall_s", "exit_code")


def run_sweep(words: Sequence[str]) -> Path:
    """Train every combination that ``words`` name; returns the sweep's folder.

    Raises:
        ConfigError: the words of a trial are wrong; nothing was started.
        RunFailed: some trials failed; the others are done.
        Interrupted, Terminated: a signal ended a trial; those after it were not started.
    """
    trials = config.trials(words)
    names = [config.compose(trial).run for trial in trials]
    folder = _folder(Path(names[0].outputs), names[0].name)
    chosen = _chosen(trials)
    rows: list[dict[str, Any]] = []
    for number, trial in enumerate(trials):
        said = " ".join(f"{key}={value}" for key, value in chosen[number].items())
        print(f"trial {number} of {len(trials)}: {said}", file=sys.stderr, flush=True)
        rows.append({"trial": number, **chosen[number], **_run(trial, folder / str(number))})
        write_atomically(folder / "sweep.csv", _table(rows))
        ended = {130: Interrupted, 143: Terminated}.get(rows[-1]["exit_code"])
        if ended is not None:
            raise ended(f"stopped in trial {number} of {len(trials)}; see {folder}")
    bad = [str(row["trial"]) for row in rows if row["exit_code"] != 0]
    if bad:
        raise RunFailed(f"{len(bad)} of {len(rows)} trials failed: {', '.join(bad)}; see {folder / 'sweep.csv'}")
    return folder


def _folder(outputs: Path, name: str) -> Path:
    parent = outputs / "sweeps"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(name)}"
        path.mkdir()
    except OSError as error:
        raise ConfigError(f"outputs: cannot be written: {error.strerror}; got {outputs}") from error
    return path


def _chosen(trials: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of each trial, the words whose value differs between trials, in the order they were typed."""
    words = [dict(word.split("=", 1) for word in trial if "=" in word) for trial in trials]
    swept = [key for key in words[0] if len({each[key] for each in words}) > 1]
    return [{key: each[key] for key in swept} for each in words]


def _run(trial: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train one trial and read how it ended. It stands in a process group of its own, and hears of each signal once, from here."""
    command = [sys.executable, "-m", "dml_runner", "train", *trial, f"run={folder}"]
    with handlers_kept():
        process = subprocess.Popen(command, process_group=0, preexec_fn=die_with_parent)
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, lambda number, _: process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM))
        code = process.wait()
    summary = RunFolder(folder).read_summary() or {}
    evaluation = summary.get("eval") or {}
    found = {**summary, "eval_loss": evaluation.get("eval_loss"), "exit_code": code}
    return {column: found.get(column) for column in COLUMNS}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
