"""The manifest: written last, it names every other file of a step with size and SHA-256, and holds its own digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dml_runner.checkpoint.shard import FileFact
from dml_runner.checkpoint.strict_json import NotAsWritten, as_int, as_object, as_text, fields, parse
from dml_runner.files import digest_text

FORMAT = 1
"""Version of the checkpoint format that this program writes and the newest it reads."""


class NewerFormat(NotAsWritten):
    """A newer program wrote the file."""


@dataclass(frozen=True)
class Manifest:
    """What a committed step consists of.

    Attributes:
        step: number of the update after which it was saved.
        generation: start of the run that wrote it.
        save: which save of that generation it is, counted from 1.
        files: size and SHA-256 of every other file, by name.
    """

    step: int
    generation: int
    save: int
    files: Mapping[str, FileFact]

    def text(self) -> str:
        """The manifest as written to disk."""
        files = {name: {"size": fact.size, "sha256": fact.sha256} for name, fact in self.files.items()}
        value = {"format": FORMAT, "step": self.step, "generation": self.generation, "save": self.save, "files": files}
        return _dump({**value, "sha256": digest_text(_dump(value))})


def parse_manifest(text: str) -> Manifest:
    """The manifest of its text.

    Raises:
        NewerFormat: a newer program wrote it.
        NotAsWritten: any byte differs from what this program writes.
    """
    value = parse(text)
    check_format(value)
    _, step, generation, save, files, own = fields(value, "format", "step", "generation", "save", "files", "sha256")
    rest = {name: part for name, part in value.items() if name != "sha256"}
    try:
        intact = own == digest_text(_dump(rest)) and text == _dump(value)
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise NotAsWritten("SHA-256 differs")
    facts = {name: _fact(fact) for name, fact in as_object(files).items()}
    return Manifest(as_int(step), as_int(generation), as_int(save), facts)


def check_format(value: Mapping[str, Any]) -> None:
    """Raise NewerFormat if a newer program wrote the object, NotAsWritten if it tells no version."""
    version = as_int(value.get("format"))
    if version > FORMAT:
        raise NewerFormat(str(version))
    if version != FORMAT:
        raise NotAsWritten(f"unknown format {version}")


def _fact(value: Any) -> FileFact:
    size, sha256 = fields(value, "size", "sha256")
    return FileFact(as_int(size), as_text(sha256))


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
