"""``data=image_folder``: a folder of image files for each class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.data.parts.labels import Split
from dml_runner.data.parts.picture_store import picture_facts, store_pictures
from dml_runner.data.parts.pictures import Picture, examined, in_threads
from dml_runner.data.parts.pixels import refuse_other_models
from dml_runner.data.parts.rows import BadRow
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import ImageFolder

if TYPE_CHECKING:
    from dml_runner.data.base import Data

NAMED = 20
"""Files that cannot be used and are named in one error: a user looks at them one by one."""


def prepare(words: ImageFolder, task: Task, cache: Path) -> DataFacts:
    """Read every image once, check and measure it, and note down its name and class.

    What was noted is used again as long as names, sizes and times of change stay as they are.

    Raises:
        ConfigError: the model reads no images, a folder is missing or has no folders in it, images cannot be read or differ in size
            where no size is given, or there are too few of them or of classes.
    """
    refuse_other_models(words.name, task)
    sources = [PictureFolder(words.path, "data.path")]
    if words.eval_path is not None:
        sources.append(PictureFolder(words.eval_path, "data.eval_path"))
    stamps = [source.stamp() for source in sources]
    store = store_pictures(Split(sources[:1], sources[1:] or None, "image", NAMED), stamps, words.bad == "skip", cache)
    if [source.stamp() for source in sources] != stamps:
        raise ConfigError(Problem("data.path", "a file changed while the images were read", hint="start again when all are there"))
    return picture_facts(words.name, [source.name for source in sources], store, words)


def open_data(words: ImageFolder, task: Task, facts: DataFacts, seed: int) -> Data:
    """The images, ready to give batches.

    Raises:
        ConfigError: what was noted down of them is gone, or Pillow is not installed.
    """
    from dml_runner.data.parts.picture_data import PictureData

    train, held_out = (Path(path).expanduser() for path in (words.path, words.eval_path or words.path))
    return PictureData(facts, words, {"train": train, "eval": held_out}, seed)


@dataclass
class PictureFolder:
    """The images in the folders of a folder, class by class and by their names.

    Args:
        name: the folder.
        key: the key that named it.
    """

    name: str
    key: str
    _digest: str = ""

    def stamp(self) -> str:
        """SHA-256 of names, sizes and times of change.

        Raises:
            ConfigError: there is no such folder, there are no folders in it, or one cannot be read.
        """
        found = hashlib.sha256()
        for label in self._classes():
            found.update(os.fsencode(label) + b"\0\0")
            for entry in self._files(label):
                about = entry.stat() if entry.is_file() else None
                found.update(f"{about.st_size} {about.st_mtime_ns}".encode() if about else b"")
                found.update(os.fsencode(entry.path) + b"\0")
        return found.hexdigest()

    def digest(self) -> str:
        """SHA-256 of the names and of each file's SHA-256, as ``rows`` met them."""
        assert self._digest, "the images were read"
        return self._digest

    def rows(self) -> Iterator[Picture | BadRow]:
        """The images, each under its name within the folder; the name of a class that has none stands for it.

        Raises:
            ConfigError: as ``stamp``.
        """
        found = hashlib.sha256()
        for label in self._classes():
            empty = True
            for row, told in in_threads(partial(self._examined, label), self._files(label)):
                empty = False
                found.update(told)
                yield row
            if empty:
                yield BadRow(_shown(label), "the folder of a class is empty")
        self._digest = found.hexdigest()

    def _examined(self, label: str, entry: os.DirEntry[str]) -> tuple[Picture | BadRow, bytes]:
        """One file's image, and the file's name with its SHA-256."""
        name = os.path.relpath(entry.path, self._root)
        kept, content = os.fsencode(name), _content(entry)
        if isinstance(content, str):
            return BadRow(_shown(name), content), kept + b"\0"
        return examined(_shown(name), _shown(label), kept, content), kept + b"\0" + hashlib.sha256(content).digest()

    @property
    def _root(self) -> str:
        return os.path.expanduser(self.name)

    def _classes(self) -> list[str]:
        with self._told():
            classes = sorted(entry.name for entry in os.scandir(self._root) if entry.is_dir() and not entry.name.startswith("."))
        if not classes:
            raise ConfigError(Problem(self.key, "no folders in it, and each class is one", got=self.name))
        return classes

    def _files(self, label: str) -> Iterator[os.DirEntry[str]]:
        with self._told():
            yield from _below(os.path.join(self._root, label))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(Problem(self.key, "cannot read the folder", got=f"{error.filename} ({error.strerror})")) from None


def _below(folder: str) -> Iterator[os.DirEntry[str]]:
    """What is no folder, at any depth, by name."""
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _below(entry.path)
        else:
            yield entry


def _content(entry: os.DirEntry[str]) -> bytes | str:
    """The bytes of a file, or what is wrong with it."""
    if not entry.is_file():  # a pipe would be waited for
        return "no plain file"
    try:
        return Path(entry.path).read_bytes()
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"


def _shown(name: str) -> str:
    """A file's name as text, whatever its bytes; two names stay two."""
    return os.fsencode(name).decode(errors="backslashreplace")
