"""Text to token ids and back: what every tokenizer offers, which one is used, and reading a kept one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dml_runner.data.parts.plain_tokenizers import (
    BYTES_FILE,
    CHARACTERS_FILE,
    CODE_POINTS,
    WORDS_FILE,
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
    code_points_of,
    words_of,
)
from dml_runner.data.parts.subword import SUBWORD_FILE, VOCABULARY_FILE, lowers_case, read_subword, read_vocabulary
from dml_runner.errors import ConfigError, Problem, did_you_mean
from dml_runner.facts import Task
from dml_runner.files import digest
from dml_runner.pretrained import PACKAGE, package_folders
from dml_runner.schema.data import Texts

KEY = "data.tokenizer"
AROUND = 2
"""Tokens of a masked sample that are not the text's: [CLS] and [SEP]."""
NAMES = ("char", "byte", "word", "bpe", "wordpiece")
TRAINED = ("bpe", "wordpiece")
FILES = (SUBWORD_FILE, VOCABULARY_FILE, CHARACTERS_FILE, BYTES_FILE, WORDS_FILE)
"""What a folder may hold a tokenizer as; the first that is there counts."""
ALLOWED = f"{', '.join(NAMES)}, or a {SUBWORD_FILE} or {VOCABULARY_FILE}"


class Tokenizer(Protocol):
    """Text to token ids and back."""

    kind: str
    """``char``, ``byte``, ``word`` or ``subword``."""
    size: int
    """Token ids there are, from 0."""
    dtype: np.dtype[np.unsignedinteger]
    """Little-endian type that holds every id."""
    pad: int
    """Fills short samples up; 0 where no token is meant for it."""
    mask: int | None
    """Stands for a hidden token."""
    first: int | None
    """Begins a sample ([CLS])."""
    last: int | None
    """Ends a sample ([SEP])."""

    def array(self, text: str) -> np.ndarray:
        """Ids of running ``text`` as ``dtype``, without special tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, without special tokens.

        Raises:
            ConfigError: something in it has no token; the first such is named.
        """

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; what is no text, or no token at all, shows as the replacement character."""

    def sample(self, text: str, length: int) -> list[int]:
        """The ids of one text as a model sees it: between ``first`` and ``last`` where there are any, cut to ``length``, never none."""

    def starts_word(self) -> np.ndarray:
        """Which tokens begin a word rather than go on with one, bool (size,); special tokens do not."""

    def save(self, folder: Path) -> None:
        """Write it into ``folder``, as ``load_tokenizer`` reads it."""


@dataclass(frozen=True)
class Choice:
    """Which tokenizer is used.

    Attributes:
        name: one of ``NAMES``, or how its file is called.
        file: where it is read from; None: it is made for the text.
        key: the key that chose it.
    """

    name: str
    file: Path | None
    key: str


def choose(words: Texts, task: Task) -> Choice:
    """The tokenizer that the words name or, where they name none, the one of the pretrained weights, or what the model needs.

    Raises:
        ConfigError: there is no such tokenizer, or it is not what the model needs.
    """
    if words.tokenizer in NAMES:
        choice = Choice(words.tokenizer, None, KEY)
    elif words.tokenizer is not None:
        choice = Choice(words.tokenizer, _locate(words.tokenizer, KEY), KEY)
    elif task.tokenizer is not None:
        choice = Choice(task.tokenizer, _locate(task.tokenizer, "model.pretrained"), "model.pretrained")
    else:
        choice = Choice(_needed(task), None, KEY)
    if choice.file is None:
        _refuse_unfit(choice, task, choice.name == "wordpiece", choice.name == "word")
    return choice


def tokenizer_for(words: Texts, task: Task, pieces: Callable[[], Iterator[str]]) -> Tokenizer:
    """The tokenizer of ``choose``, read from its file or made for the text.

    Args:
        words: ``tokenizer``, and ``vocab_size`` of a trained one.
        task: what the model wants.
        pieces: the text from its beginning, each time it is called; not called where the tokenizer is read from a file.

    Raises:
        ConfigError: there is no such tokenizer, its file is damaged, or it is not what the model needs.
    """
    choice = choose(words, task)
    if choice.file is not None:
        tokenizer = _read(choice.file, choice.key)
        hides = None not in (tokenizer.mask, tokenizer.first, tokenizer.last)
        _refuse_unfit(choice, task, hides, tokenizer.kind == "word")
        return tokenizer
    if choice.name in TRAINED:
        from dml_runner.data.parts.training import train_bpe, train_wordpiece

        return (train_bpe if choice.name == "bpe" else train_wordpiece)(pieces(), words.vocab_size)
    if choice.name == "byte":
        return ByteTokenizer()
    return WordTokenizer(words_of(pieces())) if choice.name == "word" else CharTokenizer(code_points_of(pieces()))


def identity(choice: Choice, words: Texts) -> list[Any]:
    """What tells this tokenizer from every other one, the text it is made for apart; JSON.

    Raises:
        ConfigError: its file cannot be read.
    """
    if choice.file is None:
        return [choice.name, words.vocab_size] if choice.name in TRAINED else [choice.name]
    try:
        sha = digest(choice.file)
    except OSError as error:
        raise ConfigError(Problem(choice.key, "cannot read the tokenizer", got=f"{choice.file} ({error.strerror})")) from None
    return [_form(choice.file), sha, *([lowers_case(choice.file)] if _form(choice.file) == VOCABULARY_FILE else [])]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file, or in a folder that holds one: as ``save`` wrote it, or others in a tokenizer.json or vocab.txt.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    return _read(_locate(str(path), KEY), KEY)


def _needed(task: Task) -> str:
    if task.reads == "characters":
        return "word"
    return "wordpiece" if task.objective in ("masked", "classify") else "char"


def _refuse_unfit(choice: Choice, task: Task, hides: bool, is_words: bool) -> None:
    if task.objective == "masked" and not hides:
        what = "the model learns hidden tokens, and this tokenizer lacks a token that hides others, or those around a sample"
        raise ConfigError(Problem(choice.key, what, got=choice.name, allowed="wordpiece, or a file of one with [MASK], [CLS] and [SEP]"))
    if task.reads == "characters" and not is_words:
        raise ConfigError(Problem(choice.key, "the model reads the characters of words", got=choice.name, allowed="word, or null"))


def _locate(word: str, key: str) -> Path:
    """The file of the tokenizer called ``word``."""
    if word.startswith(PACKAGE):
        return _in_package(word, key)
    path = Path(word).expanduser().absolute()
    if os.path.isfile(path) and path.suffix in (".json", ".txt"):
        return path
    found = next((path / name for name in FILES if os.path.isfile(path / name)), None)
    if found is not None:
        return found
    if os.path.isdir(path):
        raise ConfigError(Problem(key, "the folder holds no tokenizer", got=word, allowed=f"a {SUBWORD_FILE} or {VOCABULARY_FILE} in it"))
    raise ConfigError(Problem(key, "no such tokenizer", got=word, allowed=ALLOWED, hint=did_you_mean(word, NAMES)))


def _in_package(word: str, key: str) -> Path:
    """The tokenizer in an installed package, which is found without being imported."""
    places = package_folders(word, key)
    for name in (SUBWORD_FILE, VOCABULARY_FILE):
        found = sorted(path for place in places for path in place.rglob(name))
        if len(found) > 1:
            raise ConfigError(Problem(key, f"the package has several {name}", got=word, allowed=", ".join(map(str, found))))
        if found:
            return found[0].absolute()
    raise ConfigError(Problem(key, "the package holds no tokenizer", got=word, allowed=f"a {SUBWORD_FILE} or {VOCABULARY_FILE} in it"))


def _form(file: Path) -> str:
    """Which of ``FILES`` a file is: by its name, else by its ending."""
    return file.name if file.name in FILES else SUBWORD_FILE if file.suffix == ".json" else VOCABULARY_FILE


def _read(file: Path, key: str) -> Tokenizer:
    form = _form(file)
    if form == SUBWORD_FILE:
        return read_subword(file, key)
    if form == VOCABULARY_FILE:
        return read_vocabulary(file, key)
    try:
        about = json.loads(file.read_text())
        if form == BYTES_FILE:
            return ByteTokenizer()
        if form == WORDS_FILE:
            return WordTokenizer(_checked(about["words"], str))
        codes = _checked(about["characters"], int)
        if codes != sorted(codes) or not 0 <= codes[0] <= codes[-1] < CODE_POINTS:
            raise ValueError
        return CharTokenizer(codes)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise ConfigError(Problem(key, "the tokenizer is damaged", got=str(file))) from None


def _checked(entries: Any, kind: type) -> list[Any]:
    """``entries``, if they are a list of ``kind`` that names nothing twice."""
    if type(entries) is not list or any(type(entry) is not kind for entry in entries) or len(set(entries)) < len(entries):
        raise ValueError
    return entries
