"""Whether a step folder holds, byte for byte, what its manifest says; nothing else of it is read before that is known."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dml_runner.checkpoint.manifest import FORMAT, Manifest, NewerFormat, parse_manifest
from dml_runner.checkpoint.names import INDEX, MANIFEST, STATE, is_content, label, replaced_of, step_of
from dml_runner.checkpoint.shard import FileFact
from dml_runner.checkpoint.strict_json import NotAsWritten, open_regular, read_text
from dml_runner.errors import ConfigError, Problem
from dml_runner.files import inside

KEY = "checkpoint.resume"
"""The word that a refused checkpoint is reported under."""
BLOCK = 2**20


@dataclass(frozen=True)
class Verified:
    """A step whose every byte is as it was written.

    Attributes:
        manifest: what it consists of.
        bytes: bytes that were hashed.
        seconds: time that took.
    """

    manifest: Manifest
    bytes: int
    seconds: float

    @property
    def gb_per_s(self) -> float:
        """Speed of the check, in 10^9 bytes per second."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


def verify(folder: Path, hashing: bool = True) -> Verified:
    """Check a step folder: manifest, names, sizes and SHA-256 of all files, nothing missing, nothing besides.

    Args:
        folder: of the step.
        hashing: False leaves the SHA-256 out, for a rank whose peer has just compared them.

    Raises:
        ConfigError: one line that says what is wrong.
    """
    started = time.perf_counter()
    manifest = _manifest(folder)
    _check_names(folder, manifest)
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for wrong in pool.map(lambda item: _check_file(folder, item[0], item[1], hashing), manifest.files.items()):
            if wrong is not None:
                raise damaged(folder, wrong)
    hashed = sum(fact.size for fact in manifest.files.values()) if hashing else 0
    return Verified(manifest, hashed, time.perf_counter() - started)


def damaged(folder: Path, what: str) -> ConfigError:
    """The error for a step that is not as it was written."""
    return ConfigError(Problem(KEY, f"{label(folder)} is damaged: {what}", hint="name the run folder to use an older step"))


def newer(folder: Path, version: str) -> ConfigError:
    """The error for a step in a format that this program does not know yet."""
    what = f"{label(folder)} is in a newer checkpoint format"
    return ConfigError(Problem(KEY, what, got=version, allowed=f"up to {FORMAT}", hint="update dml_runner"))


def _manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise ConfigError(Problem(KEY, "no such step folder", got=str(folder)))
    if not os.path.lexists(folder / MANIFEST):
        what = f"{label(folder)} was never committed: {MANIFEST} is missing"
        raise ConfigError(Problem(KEY, what, got=str(folder), allowed="a step folder of a run"))
    try:
        manifest = parse_manifest(read_text(folder / MANIFEST))
    except NewerFormat as error:
        raise newer(folder, str(error)) from None
    except NotAsWritten as error:
        raise damaged(folder, f"{MANIFEST}: {error}") from None
    named = step_of(replaced_of(folder.name) or folder.name)
    if named is not None and named != manifest.step:
        raise damaged(folder, f"{MANIFEST}: it is of step {manifest.step}")
    return manifest


def _check_names(folder: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        try:
            inside(folder, name, KEY)
        except (ConfigError, ValueError, OSError):
            raise damaged(folder, f"{MANIFEST}: {name!r} leaves the folder") from None
        if not is_content(name):
            raise damaged(folder, f"{MANIFEST}: {name!r} is not a file of a checkpoint")
    for name in (INDEX, STATE):
        if name not in manifest.files:
            raise damaged(folder, f"{MANIFEST}: {name} is not listed")
    for name in _others(folder, [MANIFEST, *manifest.files]):
        raise damaged(folder, f"{name!r} is not in {MANIFEST}")


def _others(folder: Path, listed: Iterable[str]) -> list[str]:
    try:
        return sorted(set(os.listdir(folder)) - set(listed))
    except OSError as error:
        raise damaged(folder, f"cannot be read: {error.strerror}") from None


def _check_file(folder: Path, name: str, fact: FileFact, hashing: bool) -> str | None:
    """What is wrong with one file, or None."""
    try:
        with os.fdopen(open_regular(folder / name), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != fact.size:
                return f"{name}: {size} bytes instead of {fact.size}"
            if not hashing:
                return None
            hasher, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
            while count := file.readinto(block):
                hasher.update(block[:count])
    except NotAsWritten as error:
        return f"{name}: {error}"
    except OSError as error:
        return f"{name}: cannot be read: {error.strerror}"
    return None if hasher.hexdigest() == fact.sha256 else f"{name}: SHA-256 differs"
