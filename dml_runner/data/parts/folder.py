"""A folder of prepared data, written whole or not at all and used by every later run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from dml_runner.errors import ConfigError, Problem
from dml_runner.files import sync_folder

T = TypeVar("T")

TOKENIZER = "tokenizer"
"""Where in such a folder the tokenizer is kept."""
IN_MEMORY = 1 << 30
"""Bytes below which numbers are read into memory rather than mapped."""


def make_once(folder: Path, load: Callable[[Path], T | None], build: Callable[[Path], None]) -> T:
    """What ``load`` finds in ``folder``, after ``build`` made it there unless it is there already.

    Args:
        folder: its place; made where missing.
        load: reads a folder; None: it is missing, torn, or of another kind.
        build: fills an empty folder.

    Raises:
        ConfigError: it cannot be written.
    """
    found = load(folder)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            build(temporary)
            return _publish(temporary, folder, load)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ConfigError(Problem("data", "cannot write the prepared data", got=f"{error.filename or folder} ({error.strerror})")) from None


def _publish(temporary: Path, folder: Path, load: Callable[[Path], T | None]) -> T:
    """Give a finished folder its name, in place of a torn one; where another process was first, its folder is the one."""
    sync_folder(temporary)
    with (folder.parent / ".lock").open("a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: two processes replacing one torn folder may collide
            fcntl.flock(lock, fcntl.LOCK_EX)
        found = load(folder)
        if found is None:
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            sync_folder(folder.parent)
            found = load(folder)
    if found is None:
        raise ConfigError(Problem("data", "the prepared data vanished while it was written", got=str(folder), hint="start again"))
    return found


def numbers(path: Path, dtype: str) -> np.ndarray:
    """The numbers of a raw file, in memory if they are less than 1 GiB, else mapped."""
    if path.stat().st_size < IN_MEMORY:
        return np.fromfile(path, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))


def settle(file: IO[bytes]) -> None:
    """Have the bytes of a file on disk."""
    file.flush()
    os.fsync(file.fileno())
