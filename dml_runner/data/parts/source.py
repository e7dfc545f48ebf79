"""Clean text from files or strings, whole lines at a time, so that a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dml_runner.errors import ConfigError, Problem
from dml_runner.files import digest, digest_text

PIECE = 1 << 22
"""Bytes read at once."""
LONGEST = 1 << 24
"""Bytes of a line; a longer one, which is no line of text, is read as several."""
MARK = b"\xef\xbb\xbf"
NOT_UTF8, NUL = "not UTF-8", "NUL"


@dataclass
class Skipped:
    """Malformed lines that were left out."""

    lines: int = 0


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

    def pieces(self, skipped: Skipped | None = None) -> Iterator[str]:
        """The text, piece by piece; a line is in one piece. Malformed lines are left out and counted in ``skipped``; None: they stop."""


@dataclass(frozen=True)
class StringSource:
    """A text in memory, taken as clean."""

    name: str
    key: str
    text: str

    def digest(self) -> str:
        """SHA-256 of the text's UTF-8 bytes, as hex."""
        return digest_text(self.text)

    def pieces(self, skipped: Skipped | None = None) -> Iterator[str]:
        """The whole text; there is nothing to skip."""
        yield self.text


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a line."""

    what: str
    column: int
    byte: int


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

    def pieces(self, skipped: Skipped | None = None) -> Iterator[str]:
        """The text, piece by piece; a line that is not UTF-8, or holds a NUL, is left out and counted in ``skipped``.

        Raises:
            ConfigError: the file cannot be read or is empty; or ``skipped`` is None and there is such a line: the first is named,
                and how many there are.
        """
        try:
            yield from self._clean(skipped)
        except OSError as error:
            raise ConfigError(self._unreadable(error)) from None

    def _clean(self, skipped: Skipped | None) -> Iterator[str]:
        passed, bad, first = 0, 0, ""
        fault: _Fault | None = None
        empty = True
        for block in self._blocks():
            empty = False
            try:
                text = block.decode()
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text:
                text, faults = _sift(block)
                bad += len(faults)
                if fault is None:
                    number, fault = faults[0]
                    first = f"{self.name}:{passed + number}:{fault.column}"
            passed += block.count(b"\n")
            if text and (fault is None or skipped is not None):
                yield text
        if empty:
            raise ConfigError(Problem(self.key, "the file is empty", got=self.name))
        if fault is not None and skipped is None:
            raise ConfigError(self._malformed(fault, first, bad))
        if skipped is not None:
            skipped.lines += bad

    def _blocks(self) -> Iterator[bytes]:
        """The file's bytes in whole lines, each ending in LF; only the last line, and the parts of one that is too long, may not."""
        begun: list[bytes] = []
        length = 0
        for raw in self._raw():
            cut = raw.rfind(b"\n") + 1
            if cut:
                yield b"".join((*begun, raw[:cut]))
                begun, length = [], 0
            begun.append(raw[cut:])
            length += len(raw) - cut
            if length > LONGEST:
                whole = b"".join(begun)
                border = _border(whole)
                yield whole[:border]
                begun, length = [whole[border:]], len(whole) - border
        rest = b"".join(begun)
        if rest:
            yield rest

    def _raw(self) -> Iterator[bytes]:
        """The file's bytes without a byte order mark, every line end made LF."""
        with Path(self.name).open("rb") as file:
            head = file.read(len(MARK))
            held = b"" if head == MARK else head
            while raw := file.read(PIECE):
                raw = held + raw
                held = b"\r" if raw.endswith(b"\r") else b""  # it may be half of a CRLF
                yield raw[: len(raw) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            yield held.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _malformed(self, fault: _Fault, first: str, bad: int) -> Problem:
        allowed, hint = ("UTF-8 text", None) if fault.what == NOT_UTF8 else ("text", "is this a binary file?")
        if bad > 1:
            hint = f"the first of {bad} such lines; data.bad=skip leaves them out"
        return Problem(self.key, f"{fault.what} at {first}", got=f"byte 0x{fault.byte:02x}", allowed=allowed, hint=hint)

    def _unreadable(self, error: OSError) -> Problem:
        return Problem(self.key, "cannot read the file", got=f"{self.name} ({error.strerror})")


def _border(line: bytes) -> int:
    """Where a long line may be cut: behind its last blank, or else before its last character."""
    blank = line.rfind(b" ") + 1
    end = len(line) - 1
    while end > max(len(line) - 4, 1) and line[end] & 0xC0 == 0x80:
        end -= 1
    return blank or end


def _sift(block: bytes) -> tuple[str, list[tuple[int, _Fault]]]:
    """The clean lines of ``block``, and its malformed ones by their number from 1."""
    good: list[str] = []
    faults: list[tuple[int, _Fault]] = []
    for number, line in enumerate(_lines(block), 1):
        fault = _fault(line)
        if fault is None:
            good.append(line.decode())
        else:
            faults.append((number, fault))
    return "".join(good), faults


def _lines(block: bytes) -> list[bytes]:
    lines = block.split(b"\n")
    return [*(line + b"\n" for line in lines[:-1]), lines[-1]]


def _fault(line: bytes) -> _Fault | None:
    """The first thing wrong with a line; columns count characters from 1."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        good = line[: error.start].decode()
        if "\0" not in good:
            return _Fault(NOT_UTF8, len(good) + 1, line[error.start])
        text = good
    return _Fault(NUL, text.index("\0") + 1, 0) if "\0" in text else None
