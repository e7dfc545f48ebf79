"""JSON read with a size cap and without following links, and the shapes of value a checkpoint's files may hold."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

LIMIT = 256 * 2**20
"""Largest JSON file that is read, in bytes."""


class NotAsWritten(Exception):
    """A file is not what this program writes; the text says in what."""


def open_regular(path: Path) -> int:
    """A descriptor to read a regular file.

    Raises:
        NotAsWritten: it is missing, a link, a folder or a device, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise NotAsWritten("symbolic link" if path.is_symlink() else "not a regular file")
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotAsWritten("missing") from None
    except OSError as error:
        raise NotAsWritten(f"cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """A regular file's text.

    Raises:
        NotAsWritten: it cannot be read, is larger than ``LIMIT`` or is not UTF-8.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise NotAsWritten(f"larger than {LIMIT // 2**20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise NotAsWritten("not JSON") from None


def parse(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        NotAsWritten: the text is not JSON (NaN and infinity are not), or not an object.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NotAsWritten("not JSON") from None
    return as_object(value)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def as_object(value: Any) -> dict[str, Any]:
    """``value`` if it is an object; raises NotAsWritten."""
    if not isinstance(value, dict):
        raise NotAsWritten("an object is expected")
    return value


def fields(value: Any, *names: str) -> list[Any]:
    """The values of an object that has exactly the fields ``names``, in that order; raises NotAsWritten."""
    found = as_object(value)
    for name in found:
        if name not in names:
            raise NotAsWritten(f"unknown field {name!r}")
    for name in names:
        if name not in found:
            raise NotAsWritten(f"field {name!r} is missing")
    return [found[name] for name in names]


def as_int(value: Any) -> int:
    """``value`` if it is a whole number >= 0; raises NotAsWritten."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise NotAsWritten(f"a whole number is expected, got {str(value)[:40]!r}")
    return value


def as_text(value: Any) -> str:
    """``value`` if it is text; raises NotAsWritten."""
    if not isinstance(value, str):
        raise NotAsWritten(f"text is expected, got {str(value)[:40]!r}")
    return value


def as_shape(value: Any) -> tuple[int, ...]:
    """``value`` as a tuple of whole numbers; raises NotAsWritten."""
    if not isinstance(value, list):
        raise NotAsWritten(f"a list of whole numbers is expected, got {str(value)[:40]!r}")
    return tuple(as_int(number) for number in value)
