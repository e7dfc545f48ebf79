"""metrics.jsonl: one strictly valid JSON object a row, on disk as soon as it is logged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from dml_runner.files import write_atomically

_ENCODE = json.JSONEncoder(allow_nan=False).encode


class Jsonl:
    """Appends rows to a file; ``cut`` it first where it is continued.

    Bytes that the disk refused are kept and written, in order, as soon as it takes them again: no row is lost and no line torn.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._unwritten = b""

    def log(self, row: Mapping[str, object]) -> None:
        """Append ``row``; NaN and infinity are written as null.

        Raises:
            OSError: the disk does not take it now.
        """
        self._unwritten += (_encode(row) + "\n").encode()
        self._write()

    def note(self, text: str) -> None:
        """Notes are no metrics."""

    def finish(self, summary: Mapping[str, object]) -> None:
        """Close the file.

        Raises:
            OSError: the disk still refuses rows.
        """
        try:
            self._write()
        finally:
            os.close(self._file)

    def _write(self) -> None:
        while self._unwritten:
            written = os.write(self._file, self._unwritten)
            self._unwritten = self._unwritten[written:]


def read(path: Path) -> list[dict[str, object]]:
    """The rows of ``path``, in order; none if there is no file. Lines that are no JSON object (a torn last one) are skipped."""
    return [row for _, row in _lines(path)]


def cut(path: Path, step: int, evaluated: int) -> None:
    """Remove what is past a saved step, and lines that are no row, so that a continued run has every row once.

    A reader sees the old or the new file, never a part.

    Args:
        step: the saved step; training rows up to it stay.
        evaluated: the last step whose evaluation the save knows of; evaluation rows up to it stay.
    """
    kept = b"".join(line for line, row in _lines(path) if _is_at_most(row.get("step"), evaluated if "eval_loss" in row else step))
    if path.exists() and path.stat().st_size != len(kept):
        write_atomically(path, kept)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, object]]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and line.endswith(b"\n"):
                yield line, row


def _is_at_most(value: object, step: int) -> bool:
    return isinstance(value, int) and value <= step


def _encode(row: Mapping[str, object]) -> str:
    try:
        return _ENCODE(row)
    except ValueError:
        return _ENCODE({key: _finite(value) for key, value in row.items()})


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
