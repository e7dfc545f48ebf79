"""Rows with a text and a label, from .tsv, .csv, .jsonl and .parquet files; a malformed row comes as one that says what is wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, Protocol, TypeVar

from dml_runner.errors import ConfigError, Problem, did_you_mean
from dml_runner.files import digest

FORMATS = (".tsv", ".csv", ".jsonl", ".parquet")
FIRST_ESCAPE, LAST_ESCAPE = "\udc80", "\udcff"
"""What bytes that are not UTF-8 become under ``surrogateescape``: no clean text holds one."""


class Row(NamedTuple):
    """A text and its label; ``place`` is the line it begins in, or its number in a file that has no lines, from 1."""

    place: int
    text: str
    label: str


class BadRow(NamedTuple):
    """What is wrong with the row at ``place``, a number as in ``Row`` or a name."""

    place: int | str
    what: str


class Sample(Protocol):
    """What has a label."""

    @property
    def place(self) -> int | str:
        """Where it stands in its table: a number, or a name."""

    @property
    def label(self) -> str:
        """The word of its label."""


R_co = TypeVar("R_co", bound=Sample, covariant=True)


class RowSource(Protocol[R_co]):
    """A named table."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def key(self) -> str:
        """The key that named it."""

    def digest(self) -> str:
        """SHA-256 of what is read, as hex."""

    def rows(self) -> Iterator[R_co | BadRow]:
        """Its rows in their order."""


@dataclass(frozen=True)
class FileRows:
    """A file of rows; lines that are empty altogether are passed over.

    In .tsv a cell is what stands between two tabs, quotes included; .csv is quoted as usual; a line of .jsonl is an object. A
    ``text_column`` of digits is a column's number in a .tsv or .csv file whose first row is a row like the others; else, and in
    the other formats always, columns go by their names.
    """

    name: str
    key: str
    text_column: str
    label_column: str

    def digest(self) -> str:
        """SHA-256 of the file's bytes, as hex.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            return digest(Path(self.name))
        except OSError as error:
            self._refuse("cannot read the file", f"{self.name} ({error.strerror})")

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in their order.

        Raises:
            ConfigError: the file cannot be read, is of no known format, is empty, holds no row, or lacks a column.
        """
        read = {".tsv": self._tsv, ".csv": self._csv, ".jsonl": self._jsonl, ".parquet": self._parquet}.get(Path(self.name).suffix.lower())
        if read is None:
            self._refuse("the name's ending tells no format", self.name, ", ".join(FORMATS))
        empty = True
        try:
            if Path(self.name).stat().st_size == 0:
                self._refuse("the file is empty", self.name)
            for row in read():
                empty = False
                yield row
        except OSError as error:
            self._refuse("cannot read the file", f"{self.name} ({error.strerror or error})")
        if empty:
            self._refuse("the file has no rows", self.name)

    def _tsv(self) -> Iterator[Row | BadRow]:
        with Path(self.name).open("rb") as file:
            yield from self._table((number, line.split("\t")) for number, line in _lines(file))

    def _csv(self) -> Iterator[Row | BadRow]:
        with Path(self.name).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from self._table(_records(file))

    def _table(self, records: Iterator[tuple[int, list[str] | str]]) -> Iterator[Row | BadRow]:
        places, width = None, 0
        for number, cells in records:
            if isinstance(cells, str):
                yield BadRow(number, cells)
                continue
            if places is None:
                places, width = self._places(cells), len(cells)
                if not self.text_column.isdigit():
                    continue
            if len(cells) != width:
                yield BadRow(number, f"{_count(len(cells), 'cell')} where the first row has {width}")
            else:
                yield checked(number, cells[places[0]], cells[places[1]])

    def _places(self, first: list[str]) -> tuple[int, int]:
        """Where text and label stand, from the first row."""
        names = [str(number) for number in range(len(first))] if self.text_column.isdigit() else first
        self._require(names)
        return names.index(self.text_column), names.index(self.label_column)

    def _require(self, names: Sequence[str]) -> None:
        raise_missing((("data.text_column", self.text_column), ("data.label_column", self.label_column)), self.name, names)

    def _jsonl(self) -> Iterator[Row | BadRow]:
        known = False
        with Path(self.name).open("rb") as file:
            for number, line in _lines(file):
                fields = _fields(line)
                if isinstance(fields, str):
                    yield BadRow(number, fields)
                    continue
                if not known:
                    self._require(list(fields))
                    known = True
                yield checked(number, fields.get(self.text_column), fields.get(self.label_column))

    def _parquet(self) -> Iterator[Row | BadRow]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            self._refuse(".parquet needs pyarrow", self.name, hint="pip install 'dml_runner[huggingface]'")
        try:
            with parquet.ParquetFile(self.name) as file:
                self._require(file.schema_arrow.names)
                number = 0
                for batch in file.iter_batches(columns=[self.text_column, self.label_column]):
                    texts, labels = batch.column(self.text_column).to_pylist(), batch.column(self.label_column).to_pylist()
                    for text, label in zip(texts, labels, strict=True):
                        number += 1
                        yield checked(number, text, label)
        except pyarrow.ArrowException as error:
            self._refuse("not a whole Parquet file", f"{self.name} ({str(error).splitlines()[0]})")

    def _refuse(self, what: str, got: str, allowed: str | None = None, hint: str | None = None) -> NoReturn:
        raise ConfigError(Problem(self.key, what, got, allowed, hint))


def raise_missing(wanted: Sequence[tuple[str, str]], table: str, names: Sequence[str]) -> None:
    """Refuse columns that a table lacks.

    Args:
        wanted: keys with the columns they name.
        table: what the user calls the table.
        names: the columns it has.

    Raises:
        ConfigError: one is missing; the message lists those that are there.
    """
    there = ", ".join(names)
    found = [
        Problem(key, f"{table} has no such column", repr(column), there, did_you_mean(column, names))
        for key, column in wanted
        if column not in names
    ]
    if found:
        raise ConfigError(*found)


def checked(place: int, text: Any, label: Any) -> Row | BadRow:
    """A row, if there is a text of clean characters and a label that is a word or a number."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    word = label.strip() if isinstance(label, str) else str(label)
    wrong = wrong_text(text) or (None if text.strip() else "the text is empty") or _wrong_label(label, word)
    return BadRow(place, wrong) if wrong else Row(place, text, word)


def wrong_text(text: Any) -> str | None:
    """What is wrong with a text: it is missing, is something else, or holds what no text does; None: nothing, though it may be empty."""
    if text is None:
        return "the text is missing"
    if not isinstance(text, str):
        return f"the text is a {_kind(text)}"
    return _unclean("the text", text)


def _wrong_label(label: Any, word: str) -> str | None:
    if label is None or label != label or not word:
        return "the label is missing"
    return _unclean("the label", word) if isinstance(label, str | int | float) else f"the label is a {_kind(label)}"


def _unclean(what: str, text: str) -> str | None:
    """What ``text``, called ``what``, holds that is no text: a NUL, or what has no UTF-8 form."""
    if "\0" in text:
        return f"{what} holds a NUL"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = text[error.start]
        if FIRST_ESCAPE <= character <= LAST_ESCAPE:
            return f"{what} is not UTF-8: byte 0x{ord(character) - 0xDC00:02x}"
        return f"{what} holds half a character: U+{ord(character):04X}"
    return None


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers; bytes that are not UTF-8 are escaped."""
    for number, raw in enumerate(file, 1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")
        if number == 1:
            line = line.removeprefix("\ufeff")
        if line:
            yield number, line


def _records(file: Iterator[str]) -> Iterator[tuple[int, list[str] | str]]:
    """The records of a CSV file that are not empty, or what is wrong with one, with the line each begins in."""
    reader = csv.reader(file, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"not CSV: {error}"
            continue
        if cells:
            yield number, cells


def _fields(line: str) -> dict[str, Any] | str:
    """The object of a line of JSON, or what is wrong with the line."""
    wrong = _unclean("the line", line)
    if wrong is not None:
        return wrong
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} in column {error.colno}"
    except ValueError as error:
        return f"not JSON: {error}"
    except RecursionError:
        return "not JSON: nested too deeply"
    return value if isinstance(value, dict) else "not a JSON object"


def _kind(value: Any) -> str:
    kinds = {bool: "truth value", int: "number", float: "number", list: "list", dict: "group of fields", bytes: "row of bytes"}
    return kinds.get(type(value), type(value).__name__)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
