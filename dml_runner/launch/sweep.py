"""A sweep: its trials one after another, each a process, a world and a folder of its own, and a table on top."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dml_runner import config
from dml_runner.errors import ConfigError, RunFailed
from dml_runner.files import slug, write_atomically
from dml_runner.run_folder import RunFolder

COLUMNS = ("status", "steps", "final_loss", "eval_loss", "wall_s", "exit_code")


def run_sweep(words: Sequence[str]) -> Path:
    """Train every combination that ``words`` name; returns the sweep's folder.

    Raises:
        ConfigError: the words of a trial are wrong; nothing was started.
        RunFailed: some trials failed; the others are done.
    """
    trials = config.trials(words)
    names = [config.compose(trial).run for trial in trials]
    folder = _folder(Path(names[0].outputs), names[0].name)
    swept = _swept(trials)
    rows: list[dict[str, Any]] = []
    for number, trial in enumerate(trials):
        chosen = {word.split("=", 1)[0]: word.split("=", 1)[1] for word in trial if word.split("=", 1)[0] in swept}
        print(
            f"trial {number} of {len(trials)}: {' '.join(f'{key}={value}' for key, value in chosen.items())}", file=sys.stderr, flush=True
        )
        rows.append({"trial": number, **chosen, **_run(trial, folder / str(number))})
        write_atomically(folder / "sweep.csv", _table(rows, swept))
        if rows[-1]["exit_code"] in (130, 143):
            raise SystemExit(rows[-1]["exit_code"])
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


def _swept(trials: Sequence[Sequence[str]]) -> list[str]:
    """Keys whose value differs between trials, in the order they were typed."""
    keys = [word.split("=", 1)[0] for word in trials[0] if "=" in word]
    return [key for key in keys if len({word for trial in trials for word in trial if word.split("=", 1)[0] == key}) > 1]


def _run(trial: Sequence[str], folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "dml_runner", "train", *trial, f"run={folder}"]
    code = subprocess.run(command, env=os.environ, check=False).returncode
    summary = RunFolder(folder).read_summary() or {}
    evaluation = summary.get("eval") or {}
    found = {**summary, "eval_loss": evaluation.get("eval_loss"), "exit_code": code}
    return {column: found.get(column) for column in COLUMNS}


def _table(rows: Sequence[dict[str, Any]], swept: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["trial", *swept, *COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
