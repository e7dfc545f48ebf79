"""Files that are never half-written, digests of what was read, and paths that stay where they belong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

from dml_runner.errors import ConfigError, Problem


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` so that a reader sees the old or the new file, never a part.

    The bytes are on disk before the name points at them (fsync of file and folder).
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON; NaN and infinity are refused."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable (fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def slug(name: str) -> str:
    """``name`` as one safe path component: letters, digits, ``._-``; never empty, never hidden."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "job"


def inside(root: Path, relative: str, key: str) -> Path:
    """The path ``root/relative``, refused if it or a link on its way leaves ``root``.

    Raises:
        ConfigError: the path is absolute, contains ``..`` or resolves outside ``root``.
    """
    path = root / relative
    if Path(relative).is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(Problem(key, "the path leaves its folder", got=repr(relative), allowed=f"a path inside {root}"))
    return path
