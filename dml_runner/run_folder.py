"""RunFolder: where one run keeps everything, by name, and the lock that keeps a second job out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dml_runner.checkpoint.tidy import steps
from dml_runner.errors import ConfigError, Problem
from dml_runner.files import slug


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def job(self) -> Path:
        """The intent: resolved config, data facts, versions."""
        return self.path / "job.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """How the run ended."""
        return self.path / "summary.json"

    @property
    def ranks(self) -> Path:
        """The processes of the present generation."""
        return self.path / "ranks.json"

    @property
    def tracker(self) -> Path:
        """What an outside tracker keeps locally."""
        return self.path / "tracker"

    @property
    def schedule(self) -> Path:
        """A pipeline's step, predicted and as it ran, as a picture."""
        return self.path / "schedule.svg"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of the data, kept so that the run needs nothing of the cache; missing where there is none."""
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        """Committed steps, and ``latest``."""
        return self.path / "checkpoints"

    def log(self, rank: int) -> Path:
        """What rank ``rank`` printed."""
        return self.path / "logs" / f"rank-{rank}.log"

    def error(self, rank: int) -> Path:
        """Why rank ``rank`` failed in the present generation."""
        return self.path / "logs" / f"rank-{rank}.error.json"

    def generation(self, number: int) -> Path:
        """What start ``number`` of the run looked like."""
        return self.path / "generations" / f"{number}.json"

    def create(self) -> None:
        """Make the folder and its rooms; who may read them is the umask's word."""
        for room in (self.path / "logs", self.path / "generations", self.tracker, self.checkpoints):
            room.mkdir(parents=True, exist_ok=True)

    def keep_tokenizer(self, store: str) -> None:
        """Copy the tokenizer of the data in ``store``, unless that has none or it is kept already.

        Raises:
            ConfigError: it cannot be written.
        """
        source = Path(store) / "tokenizer"
        if not store or self.tokenizer.exists() or not source.is_dir():
            return
        half = self.path / f".tokenizer.{os.getpid()}"
        try:
            shutil.copytree(source, half)
            os.rename(half, self.tokenizer)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(half, ignore_errors=True)
            raise ConfigError(Problem("run", f"the tokenizer cannot be kept: {error}", got=str(self.path))) from error

    def next_generation(self) -> int:
        """Number of the next start."""
        numbers = [int(path.stem) for path in (self.path / "generations").glob("*.json") if path.stem.isdigit()]
        return max(numbers, default=-1) + 1

    def last_step(self) -> int:
        """Number of the newest saved step; 0: none."""
        return max(steps(self.checkpoints), default=0)

    def read_summary(self) -> dict[str, Any] | None:
        """summary.json, or None while there is none or it cannot be read."""
        try:
            summary: dict[str, Any] = json.loads(self.summary.read_text())
        except (OSError, ValueError):
            return None
        return summary


def new_folder(outputs: Path, name: str) -> RunFolder:
    """A new folder ``<outputs>/train/<time>-<name>`` that no other process has.

    Raises:
        ConfigError: it cannot be made there.
    """
    parent = outputs / "train"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            stamp = time.strftime("%Y%m%d-%H%M%S") + (f".{attempt}" if attempt > 1 else "")
            path = parent / f"{stamp}-{slug(name)}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return RunFolder(path)
    except OSError as error:
        raise ConfigError(
            Problem("outputs", f"cannot be written: {error.strerror}", got=str(outputs), allowed="a folder you may write")
        ) from error
    raise ConfigError(Problem("outputs", "too many runs in one second", got=str(parent)))


def named_folder(path: Path) -> RunFolder:
    """The folder the user named, made if it is not there.

    Raises:
        ConfigError: it cannot be made, or holds something that is no run.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        strangers = any(path.iterdir()) and not (path / "job.yaml").exists() and not (path / "lock").exists()
    except OSError as error:
        raise ConfigError(
            Problem("run", f"cannot be written: {error.strerror}", got=str(path), allowed="a folder you may write")
        ) from error
    if strangers:
        raise ConfigError(
            Problem("run", "the folder is not empty and holds no run", got=str(path), allowed="a new folder, or one of our runs")
        )
    return RunFolder(path)


class Lock:
    """Keeps a second job out of a run folder while this process lives; the kernel frees it when the process dies."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / "lock"
        self._file: IO[str] | None = None

    def take(self) -> bool:
        """Take the lock; False when another process holds it."""
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
        file.flush()
        self._file = file
        return True

    def take_or_refuse(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: another process holds it; its owner is named.
        """
        if not self.take():
            owner = self._path.read_text() or "another process"
            raise ConfigError(
                Problem(
                    "run",
                    "another job is using this folder",
                    got=str(self._path.parent),
                    hint=f"it is held by {owner}; wait, or name another run=",
                )
            )

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None
