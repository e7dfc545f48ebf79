"""Tables of the datasets library as rows with a label, as running text, or as images."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dml_runner.data.parts.hub import KEY, Table
from dml_runner.data.parts.pictures import Picture, examined, in_threads
from dml_runner.data.parts.rows import BadRow, Row, checked, wrong_text
from dml_runner.data.parts.source import Skipped
from dml_runner.errors import ConfigError, Problem

PIECE = 1 << 20
"""Characters of running text that are handed over at once, about."""


@dataclass
class Spool:
    """Rows that come from far away once, kept in a file without a name to be read again until the ``with`` block ends.

    Args:
        folder: in which file system.
    """

    folder: Path
    _file: IO[str] | None = field(default=None, init=False)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
        """The rows; ``rows`` is read to its end at the first call, and never again.

        Raises:
            ConfigError: there is no room for them.
        """
        file = self._file or self._fill(rows)
        file.seek(0)
        for line in file:
            cells = json.loads(line)
            yield Row(*cells) if len(cells) == len(Row._fields) else BadRow(*cells)

    def _fill(self, rows: Iterator[Row | BadRow]) -> IO[str]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile("w+", dir=self.folder, encoding="utf-8")  # noqa: SIM115 - closed by __exit__
            for row in rows:
                self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(Problem("data", "cannot keep the rows", got=f"{self.folder} ({error.strerror})")) from None
        return self._file


@dataclass(frozen=True)
class HubRows:
    """The texts and labels of a table.

    Args:
        table: where they are read.
        text_column: column of the text.
        label_column: column of the label; None: the text alone is read, which may then be empty.
        spool: keeps rows that are not to be asked for twice; None: they may be.
    """

    table: Table
    text_column: str
    label_column: str | None
    spool: Spool | None
    key: str = KEY

    @property
    def name(self) -> str:
        """The table's."""
        return self.table.name

    def digest(self) -> str:
        """The table's."""
        return self.table.digest

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in their order, numbered from 1.

        Raises:
            ConfigError: the table cannot be read, or has no rows.
        """
        yield from self._read() if self.spool is None else self.spool.keep(self._read())

    def _read(self) -> Iterator[Row | BadRow]:
        number = 0
        if self.label_column is None:
            for number, (text,) in enumerate(self.table.rows(self.text_column), 1):
                wrong = wrong_text(text)
                yield BadRow(number, wrong) if wrong else Row(number, text, "")
        else:
            for number, (text, label) in enumerate(self.table.rows(self.text_column, self.label_column), 1):
                yield checked(number, text, label)
        if not number:
            raise ConfigError(Problem(self.key, "the table has no rows", got=self.name))


@dataclass(frozen=True)
class HubText:
    """The texts of a table one after the other, each the lines of its own."""

    source: HubRows

    @property
    def name(self) -> str:
        """The table's."""
        return self.source.name

    @property
    def key(self) -> str:
        """The key that named it."""
        return self.source.key

    def digest(self) -> str:
        """The table's."""
        return self.source.digest()

    def pieces(self, skipped: Skipped | None = None) -> Iterator[str]:
        """The text, piece by piece; a text is in one piece. Malformed rows are left out and counted in ``skipped``.

        Raises:
            ConfigError: the table cannot be read or has no rows; or ``skipped`` is None and rows are malformed: the first is named, and
                how many there are.
        """
        bad: list[BadRow] = []
        texts: list[str] = []
        length = 0
        for row in self.source.rows():
            if isinstance(row, BadRow):
                bad.append(row)
                continue
            texts.append(row.text + "\n")
            length += len(row.text)
            if length > PIECE:
                yield "".join(texts)
                texts, length = [], 0
        if texts:
            yield "".join(texts)
        if skipped is not None:
            skipped.lines += len(bad)
        elif bad:
            hint = f"the first of {len(bad)} such rows; data.bad=skip leaves them out" if len(bad) > 1 else "data.bad=skip leaves it out"
            raise ConfigError(Problem(self.key, f"{bad[0].what} at {self.name}:{bad[0].place}", hint=hint))


@dataclass(frozen=True)
class HubPictures:
    """The images and labels of a table, which is read once."""

    table: Table
    image_column: str
    label_column: str
    key: str = KEY

    @property
    def name(self) -> str:
        """The table's."""
        return self.table.name

    def stamp(self) -> str:
        """What tells the images from others: the table's digest and the columns."""
        return json.dumps([self.table.digest, self.image_column, self.label_column])

    def digest(self) -> str:
        """The table's."""
        return self.table.digest

    def rows(self) -> Iterator[Picture | BadRow]:
        """The rows in their order, numbered from 1.

        Raises:
            ConfigError: the table cannot be read, or has no rows.
        """
        empty = True
        for row in in_threads(self._examined, enumerate(self.table.rows(self.image_column, self.label_column), 1)):
            empty = False
            yield row
        if empty:
            raise ConfigError(Problem(self.key, "the table has no rows", got=self.name))

    def _examined(self, numbered: tuple[int, tuple[Any, ...]]) -> Picture | BadRow:
        number, (cell, label) = numbered
        row = checked(number, self.image_column, label)
        if isinstance(row, BadRow):
            return row
        content = _file_of(cell)
        return BadRow(number, content) if isinstance(content, str) else examined(number, row.label, content, content)


def _file_of(cell: Any) -> bytes | str:
    """The file of an image, which stands in the table or beside it, or what is wrong with it.

    Raises:
        ConfigError: it cannot be fetched, though it may be there.
    """
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is None and isinstance(path, str):
        import fsspec

        try:
            with fsspec.open(path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return f"the image's file {path} is missing"
        except Exception as error:  # a file system's errors belong to its library
            raise ConfigError(Problem(KEY, "cannot read an image's file", got=f"{path} ({type(error).__name__})")) from None
    if content is None:
        return "the image is missing"
    return content if isinstance(content, bytes) else f"the cell holds no image ({type(content).__name__})"
