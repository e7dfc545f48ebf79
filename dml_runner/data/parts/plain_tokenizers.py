"""Tokenizers that need no training: a token is a character, a UTF-8 byte or a word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dml_runner.errors import ConfigError, Problem
from dml_runner.files import write_json

CODE_POINTS = 0x110000
REPLACEMENT = "\ufffd"
NEVER_UTF8 = 0xFF
WORD = re.compile(r"\w+|[^\w\s]")
"""What ``word`` takes for one: letters, digits and underscores in a row, or one mark of punctuation; case is kept, space is not."""
CHARACTERS_FILE, BYTES_FILE, WORDS_FILE = "characters.json", "bytes.json", "words.json"


class CharTokenizer:
    """One token a character; ids follow the order of code points.

    Args:
        vocabulary: the code points that have a token, sorted.
    """

    kind = "char"
    pad = 0
    mask: int | None = None
    first: int | None = None
    last: int | None = None

    def __init__(self, vocabulary: Sequence[int]) -> None:
        self.vocabulary = list(vocabulary)
        self.size = len(vocabulary)
        self.dtype = smallest_dtype(self.size)
        self._characters = [chr(code) for code in vocabulary]
        self._ids = {character: token for token, character in enumerate(self._characters)}
        self._table = np.full(CODE_POINTS, self._ids.get(" ", 0), self.dtype)
        self._table[self.vocabulary] = np.arange(self.size)

    def array(self, text: str) -> np.ndarray:
        """Ids of ``text`` as ``dtype``; a character without a token is read as a space, or as id 0 where that has none either."""
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

    def sample(self, text: str, length: int) -> list[int]:
        """The first ``length`` ids of ``text``; of an empty text, one padding."""
        return cut_text(self.array(text[:length]), length, self.pad)

    def starts_word(self) -> np.ndarray:
        """All true: every character stands alone."""
        return np.ones(self.size, bool)

    def save(self, folder: Path) -> None:
        """Write ``characters.json``."""
        write_json(folder / CHARACTERS_FILE, {"characters": self.vocabulary})


class ByteTokenizer:
    """One token a UTF-8 byte; 256 in all."""

    kind = "byte"
    size = 256
    dtype: np.dtype[np.unsignedinteger] = np.dtype(np.uint8)
    pad = 0
    mask: int | None = None
    first: int | None = None
    last: int | None = None

    def array(self, text: str) -> np.ndarray:
        """Bytes of ``text``."""
        return np.frombuffer(text.encode(), np.uint8)

    def encode(self, text: str) -> list[int]:
        """Bytes of ``text``.

        Raises:
            ConfigError: a character has no UTF-8 form (a lone surrogate); the first such is named.
        """
        return list(utf8(text))

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; what is not UTF-8, or above the vocabulary, shows as the replacement character."""
        return bytes(min(token, NEVER_UTF8) for token in ids).decode(errors="replace")

    def sample(self, text: str, length: int) -> list[int]:
        """The first ``length`` bytes of ``text``; of an empty text, one padding."""
        return cut_text(self.array(text[:length]), length, self.pad)

    def starts_word(self) -> np.ndarray:
        """All true: every byte stands alone."""
        return np.ones(self.size, bool)

    def save(self, folder: Path) -> None:
        """Write ``bytes.json``."""
        write_json(folder / BYTES_FILE, {})


class WordTokenizer:
    """One token a word or a mark of punctuation, as ``WORD`` finds them; id 0 stands for every word that has none.

    Args:
        words: the words that have a token, from id 1.
    """

    kind = "word"
    pad = 0
    mask: int | None = None
    first: int | None = None
    last: int | None = None

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.size = len(words) + 1
        self.dtype = smallest_dtype(self.size)
        self._ids = {word: token for token, word in enumerate(words, 1)}

    def array(self, text: str) -> np.ndarray:
        """Ids of ``text`` as ``dtype``."""
        known = self._ids
        return np.fromiter((known.get(word, 0) for word in WORD.findall(text)), self.dtype)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; a word that has none becomes 0.

        Raises:
            ConfigError: a character has no UTF-8 form (a lone surrogate); the first such is named.
        """
        utf8(text)
        return [int(token) for token in self.array(text)]

    def decode(self, ids: list[int]) -> str:
        """The words of ``ids`` with spaces between them; an unknown word shows as the replacement character."""
        return " ".join(self.words[token - 1] if 0 < token < self.size else REPLACEMENT for token in ids)

    def sample(self, text: str, length: int) -> list[int]:
        """The first ``length`` words of ``text``; of an empty text, one unknown word."""
        return cut_text(self.array(text), length, self.pad)

    def starts_word(self) -> np.ndarray:
        """All true: every word stands alone."""
        return np.ones(self.size, bool)

    def save(self, folder: Path) -> None:
        """Write ``words.json``."""
        write_json(folder / WORDS_FILE, {"words": self.words})


def code_points_of(pieces: Iterable[str]) -> list[int]:
    """The code points that occur, sorted."""
    seen = np.zeros(CODE_POINTS, bool)
    for text in pieces:
        seen[code_points(text)] = True
    return [int(code) for code in np.flatnonzero(seen)]


def words_of(pieces: Iterable[str]) -> list[str]:
    """The words that occur, the most frequent first, and those equally frequent in the order of their letters."""
    counts: Counter[str] = Counter()
    for text in pieces:
        counts.update(WORD.findall(text))
    return sorted(counts, key=lambda word: (-counts[word], word))


def code_points(text: str) -> np.ndarray:
    """Code points of ``text`` as uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def utf8(text: str) -> bytes:
    """``text`` as UTF-8.

    Raises:
        ConfigError: a character has no UTF-8 form (a lone surrogate); the first such is named.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        what = f"character {error.start + 1} has no UTF-8 form"
        raise ConfigError(Problem("prompt", what, got=name_of(text[error.start]), allowed="UTF-8 text")) from None


def cut_text(ids: np.ndarray, length: int, pad: int) -> list[int]:
    """The first ``length`` of ``ids``, and never none."""
    return [int(token) for token in ids[:length]] or [pad]


def smallest_dtype(size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest little-endian unsigned type that holds ids below ``size``."""
    return np.dtype("u1" if size <= 1 << 8 else "<u2" if size <= 1 << 16 else "<u4")


def name_of(character: str) -> str:
    """A character as a user can recognise it: quoted, with its code point."""
    return f"{character!a} (U+{ord(character):04X})" if not character.isprintable() else f"{character!r} (U+{ord(character):04X})"
