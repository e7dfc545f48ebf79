"""Clean text from files or strings, a piece at a time, so that a file may be larger than memory."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dml_runner.errors import ConfigError, Problem
from dml_runner.files import digest, digest_text

PIECE = 1 << 22
"""Bytes read at once."""


class Source(Protocol):
    """A named text."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def key(self) -> str:
        """The key that named it."""

    def digest(self) -> str:
        """SHA-256 of what is read, as hex."""

    def pieces(self) -> Iterator[str]:
        """The text, piece by piece."""


@dataclass(frozen=True)
class StringSource:
    """A text in memory, taken as clean."""

    name: str
    key: str
    text: str

    def digest(self) -> str:
        """SHA-256 of the text's UTF-8 bytes, as hex."""
        return digest_text(self.text)

    def pieces(self) -> Iterator[str]:
        """The whole text."""
        yield self.text


@dataclass(frozen=True)
class FileSource:
    """A UTF-8 file; a byte order mark is dropped, CRLF and CR become LF."""

    name: str
    key: str

    def digest(self) -> str:
        """SHA-256 of the file's bytes, as hex.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            return digest(Path(self.name))
        except OSError as error:
            raise ConfigError(self._unreadable(error)) from None

    def pieces(self) -> Iterator[str]:
        """The text, piece by piece.

        Raises:
            ConfigError: the file cannot be read, is empty, is not UTF-8, or holds a NUL; the first place is named.
        """
        try:
            yield from self._clean()
        except OSError as error:
            raise ConfigError(self._unreadable(error)) from None

    def _clean(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        place = _Place()
        with Path(self.name).open("rb") as file:
            final = False
            while not final:
                raw = file.read(PIECE)
                final = not raw
                try:
                    decoded = decoder.decode(raw, final)
                except UnicodeDecodeError as error:
                    good = newlines.decode(error.object[: error.start].decode(), final=True)
                    raise ConfigError(self._not_utf8(place, good, error.object[error.start])) from None
                text = newlines.decode(decoded, final=final)
                if place.at_start:
                    text = text.removeprefix("\ufeff")
                if "\0" in text:
                    raise ConfigError(self._nul(place, text))
                place.pass_by(text)
                if text:
                    yield text
        if place.at_start:
            raise ConfigError(Problem(self.key, "the file is empty", got=self.name))

    def _not_utf8(self, place: _Place, good: str, byte: int) -> Problem:
        place.pass_by(good.removeprefix("\ufeff") if place.at_start else good)
        return Problem(self.key, f"not UTF-8 at {self.name}:{place}", got=f"byte 0x{byte:02x}", allowed="UTF-8 text")

    def _nul(self, place: _Place, text: str) -> Problem:
        place.pass_by(text[: text.index("\0")])
        return Problem(self.key, f"NUL at {self.name}:{place}", got="byte 0x00", allowed="text", hint="is this a binary file?")

    def _unreadable(self, error: OSError) -> Problem:
        return Problem(self.key, "cannot read the file", got=f"{self.name} ({error.strerror})")


class _Place:
    """Line and column, from 1, of the next character of a text."""

    def __init__(self) -> None:
        self.line, self.column, self.at_start = 1, 1, True

    def pass_by(self, text: str) -> None:
        lines = text.count("\n")
        self.line += lines
        self.column = len(text) - text.rindex("\n") if lines else self.column + len(text)
        self.at_start = self.at_start and not text

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"
