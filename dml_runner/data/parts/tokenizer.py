"""Text to token ids and back: one token a character, or one token a UTF-8 byte."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from dml_runner.errors import ConfigError, Problem

Vocabulary = list[int] | str
"""Code points in the order of their ids, or ``byte``."""
CODE_POINTS = 0x110000
REPLACEMENT = "\ufffd"
NEVER_UTF8 = 0xFF


class Tokenizer(Protocol):
    """Text to token ids and back."""

    vocabulary: Vocabulary
    size: int
    dtype: np.dtype[np.unsignedinteger]
    """Little-endian type that holds every id."""

    def array(self, text: str) -> np.ndarray:
        """Ids of ``text`` as ``dtype``; every character must have a token."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``.

        Raises:
            ConfigError: a character has no token; the first such is named.
        """

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``."""


class CharTokenizer:
    """One token a character; ids follow the order of code points.

    Args:
        vocabulary: the code points that have a token, sorted.
    """

    def __init__(self, vocabulary: list[int]) -> None:
        self.vocabulary: Vocabulary = vocabulary
        self.size = len(vocabulary)
        self.dtype = smallest_dtype(self.size)
        self._characters = [chr(code) for code in vocabulary]
        self._ids = {character: token for token, character in enumerate(self._characters)}
        self._table = np.zeros(CODE_POINTS, self.dtype)
        self._table[vocabulary] = np.arange(self.size)

    def array(self, text: str) -> np.ndarray:
        """Ids of ``text`` as ``dtype``; every character must have a token."""
        return np.take(self._table, code_points(text))

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``.

        Raises:
            ConfigError: a character has no token; the first such is named.
        """
        for position, character in enumerate(text):
            if character not in self._ids:
                what = f"character {position + 1} does not occur in the training text"
                raise ConfigError(Problem("prompt", what, got=name_of(character), allowed=f"the {self.size} characters of that text"))
        return [self._ids[character] for character in text]

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; an id above the vocabulary shows as the replacement character."""
        return "".join(self._characters[token] if token < self.size else REPLACEMENT for token in ids)


class ByteTokenizer:
    """One token a UTF-8 byte; 256 in all."""

    vocabulary: Vocabulary = "byte"
    size = 256
    dtype = np.dtype(np.uint8)

    def array(self, text: str) -> np.ndarray:
        """Bytes of ``text``."""
        return np.frombuffer(text.encode(), np.uint8)

    def encode(self, text: str) -> list[int]:
        """Bytes of ``text``.

        Raises:
            ConfigError: a character has no UTF-8 form (a lone surrogate); the first such is named.
        """
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            what = f"character {error.start + 1} has no UTF-8 form"
            raise ConfigError(Problem("prompt", what, got=name_of(text[error.start]), allowed="UTF-8 text")) from None

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; what is not UTF-8, or above the vocabulary, shows as the replacement character."""
        return bytes(min(token, NEVER_UTF8) for token in ids).decode(errors="replace")


def tokenizer_from(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer that has ``vocabulary``."""
    return ByteTokenizer() if isinstance(vocabulary, str) else CharTokenizer(vocabulary)


def vocabulary_of(pieces: Iterable[str]) -> list[int]:
    """The code points that occur, sorted."""
    seen = np.zeros(CODE_POINTS, bool)
    for text in pieces:
        seen[code_points(text)] = True
    return [int(code) for code in np.flatnonzero(seen)]


def code_points(text: str) -> np.ndarray:
    """Code points of ``text`` as uint32."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def smallest_dtype(size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest little-endian unsigned type that holds ids below ``size``."""
    return np.dtype("u1" if size <= 1 << 8 else "<u2" if size <= 1 << 16 else "<u4")


def name_of(character: str) -> str:
    """A character as a user can recognise it: quoted, with its code point."""
    return f"{character!a} (U+{ord(character):04X})" if not character.isprintable() else f"{character!r} (U+{ord(character):04X})"
