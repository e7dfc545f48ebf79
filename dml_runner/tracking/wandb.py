"""Weights & Biases: one run a job, served by a thread of its own, so that no network is ever waited for while training."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dml_runner.errors import ConfigError, Problem
from dml_runner.schema import tracker as schema
from dml_runner.tracking.base import first_line

if TYPE_CHECKING:
    import wandb

INIT_S = 4.0
"""Longest wait for the server when a run begins; then the run is kept offline."""
UPLOAD_S = 4.0
"""Longest wait for the server when a run ends; what is not sent by then is on disk."""
FINISH_S = 10.0
"""Longest wait of ``finish``, all in all."""
BATCH_S = 0.5
"""Rows are handed over this often."""
FLUSH_S = 1.0
"""Local files are written this often; what a killed run had not written by then stands in metrics.jsonl alone."""

SETTINGS: Mapping[str, Any] = {
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "symlink": False,
    "finish_timeout_raises": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": FLUSH_S,
}
"""No console capture, no code, git, host or package list. A version that lacks one of these goes without."""


def check() -> None:
    """Look for the package without importing it.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(Problem("tracker", "wandb is not installed", hint="pip install 'dml_runner[wandb]'"))


@dataclass(frozen=True)
class Identity:
    """What a run is to the tracker.

    Attributes:
        id: the same each time the run is continued; letters, digits, ``._-``.
        name: for people.
        config: the job's words; values from the environment as references.
    """

    id: str
    name: str
    config: Mapping[str, Any]


class Wandb:
    """Sends rows to Weights & Biases, each under its own step: an evaluation joins the training row of its step.

    Where the server cannot be reached, or refuses, the rows go to ``folder`` and one note says how to send them later.

    Args:
        words: the job's ``tracker`` section.
        folder: where local files go.
        identity: which run this is.
        say: shows a line to a person; called from the tracker's thread.
    """

    def __init__(self, words: schema.Wandb, folder: Path, identity: Identity, say: Callable[[str], None]) -> None:
        self._words, self._folder, self._identity, self._say = words, folder, identity, say
        self._rows: deque[dict[str, object]] = deque()
        self._summary: Mapping[str, object] | None = None
        self._error: Exception | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, object]) -> None:
        """Queue a row; its thread sends it.

        Raises:
            Exception: what ended the thread.
        """
        if self._error is not None:
            raise self._error
        self._rows.append(dict(row))

    def note(self, text: str) -> None:
        """Notes are no metrics."""

    def finish(self, summary: Mapping[str, object]) -> None:
        """Send what is left and the summary; waits ``FINISH_S`` at most.

        Raises:
            TimeoutError: the thread did not end by then.
            Exception: what ended the thread.
        """
        self._summary = summary
        self._ending.set()
        self._thread.join(FINISH_S)
        if self._thread.is_alive():
            raise TimeoutError(f"not finished within {FINISH_S:g} s; what was written is in {self._folder}")
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        try:
            run = self._begin()
            while not self._ending.wait(BATCH_S):
                self._send(run)
            self._send(run)
            self._end(run)
        except Exception as error:
            self._error = error

    def _begin(self) -> wandb.Run:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if self._words.mode == "offline":
            return self._open("offline")
        try:
            return self._open("online")
        except Exception as error:
            reason = first_line(error)
        import wandb

        wandb.teardown()  # the failed attempt holds on to the run's id
        run = self._open("offline")
        self._say(f"wandb: {reason}; kept offline, send it later with: wandb sync {Path(run.dir).parent}")
        return run

    def _open(self, mode: Literal["online", "offline"]) -> wandb.Run:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        wanted = {**SETTINGS, "init_timeout": INIT_S, "finish_timeout": UPLOAD_S}
        settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in wandb.Settings.model_fields})
        return wandb.init(
            project=self._words.project,
            entity=self._words.entity,
            name=self._identity.name,
            id=self._identity.id,
            config=dict(self._identity.config),
            dir=self._folder,
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def _send(self, run: wandb.Run) -> None:
        while self._rows:
            row = self._rows.popleft()
            step = row["step"]
            assert isinstance(step, int)
            run.log(row, step=step)

    def _end(self, run: wandb.Run) -> None:
        summary = self._summary or {}
        run.summary.update(dict(summary))
        folder = Path(run.dir).parent
        try:
            run.finish(exit_code=0 if summary.get("status") == "completed" else 1)
        except TimeoutError:
            self._say(f"wandb: the server did not take everything within {UPLOAD_S:g} s, send the rest later with: wandb sync {folder}")
