"""The token store: a folder of raw token arrays, written whole or not at all and used by every later run.

``train.bin`` and ``eval.bin`` hold ids as raw little-endian integers; ``store.json`` says what they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from dml_runner.data.parts.source import Source
from dml_runner.data.parts.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, Vocabulary, vocabulary_of
from dml_runner.errors import ConfigError, Problem
from dml_runner.files import sync_folder, write_json

FORMAT = 1
"""Version of the folder's layout; another version is another store."""
HELD_OUT = "last 10 %"
IN_MEMORY = 1 << 30
"""Bytes below which tokens are read into memory rather than mapped."""

Part = Literal["train", "eval"]


@dataclass(frozen=True)
class Store:
    """A complete token store.

    Attributes:
        folder: where it is.
        vocabulary: code points in the order of their ids, or ``byte``.
        size: ids that can occur.
        dtype: of one id.
        counts: tokens of ``train`` and ``eval``.
    """

    folder: Path
    vocabulary: Vocabulary
    size: int
    dtype: str
    counts: dict[str, int]

    def tokens(self, part: Part) -> np.ndarray:
        """The ids of one part, in memory if they are less than 1 GiB."""
        path = self.folder / f"{part}.bin"
        if path.stat().st_size < IN_MEMORY:
            return np.fromfile(path, self.dtype)
        return np.asarray(np.memmap(path, self.dtype, mode="r"))


def load_store(folder: Path) -> Store | None:
    """The store in ``folder``; None if there is none or a file of it is missing, torn or of another size."""
    try:
        about = json.loads((folder / "store.json").read_text())
        counts = {part: int(about["counts"][part]) for part in ("train", "eval")}
        width = np.dtype(about["dtype"]).itemsize
        whole = all((folder / f"{part}.bin").stat().st_size == count * width for part, count in counts.items())
        vocabulary = about["vocabulary"]
        size = ByteTokenizer.size if vocabulary == ByteTokenizer.vocabulary else len(vocabulary)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Store(folder, vocabulary, size, about["dtype"], counts) if whole else None


def store_tokens(train: Sequence[Source], held_out: Sequence[Source] | None, tokenizer: str, cache: Path) -> tuple[Store, dict[str, str]]:
    """The token store of the given texts, made unless it is there, and the SHA-256 of each text by its name.

    Args:
        train: texts to train on, one after the other.
        held_out: texts held out; None: the last 10 % of the tokens of ``train``.
        tokenizer: ``char`` or ``byte``.
        cache: folder that keeps stores, under ``tokens/``.

    Raises:
        ConfigError: a text is malformed, or changes while it is read; or the store cannot be written.
    """
    digests = _digests(train, held_out)
    split: list[Any] = [[digests[s.name] for s in train], HELD_OUT if held_out is None else [digests[s.name] for s in held_out]]
    key = hashlib.sha256(json.dumps([FORMAT, tokenizer, split]).encode()).hexdigest()[:32]
    folder = cache.absolute() / "tokens" / key
    store = load_store(folder)
    if store is None:
        try:
            store = _build(folder, train, held_out, tokenizer, digests)
        except OSError as error:
            problem = Problem("data", "cannot write the prepared tokens", got=f"{error.filename or folder} ({error.strerror})")
            raise ConfigError(problem) from None
    return store, digests


def _digests(train: Sequence[Source], held_out: Sequence[Source] | None) -> dict[str, str]:
    return {source.name: source.digest() for source in (*train, *(held_out or ()))}


def _build(folder: Path, train: Sequence[Source], held_out: Sequence[Source] | None, word: str, digests: dict[str, str]) -> Store:
    tokenizer, counts = _scan(train, held_out, word)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _write(temporary, train, held_out, tokenizer, counts)
        if _digests(train, held_out) != digests:
            raise ConfigError(Problem(train[0].key, "a file changed while it was read", hint="start again when it is complete"))
        about = {"format": FORMAT, "vocabulary": tokenizer.vocabulary, "dtype": tokenizer.dtype.str, "counts": counts}
        write_json(temporary / "store.json", about)
        return _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _scan(train: Sequence[Source], held_out: Sequence[Source] | None, word: str) -> tuple[Tokenizer, dict[str, int]]:
    """Read everything once: what is malformed, which characters occur, how many tokens there are."""
    problems: list[Problem] = []
    totals = [0, 0]

    def pieces() -> Iterator[str]:
        for which, sources in enumerate((train, held_out or ())):
            for source in sources:
                try:
                    for text in source.pieces():
                        totals[which] += len(text) if word == "char" else len(text.encode())
                        yield text
                except ConfigError as error:
                    problems.extend(error.problems)

    vocabulary = vocabulary_of(pieces())
    if problems:
        raise ConfigError(*problems)
    if held_out is None:
        total = totals[0]
        totals = [total * 9 // 10, total - total * 9 // 10]
    tokenizer: Tokenizer = CharTokenizer(vocabulary) if word == "char" else ByteTokenizer()
    return tokenizer, {"train": totals[0], "eval": totals[1]}


def _write(folder: Path, train: Sequence[Source], held_out: Sequence[Source] | None, tokenizer: Tokenizer, counts: dict[str, int]) -> None:
    with (folder / "train.bin").open("wb") as training, (folder / "eval.bin").open("wb") as holding:
        left = counts["train"]
        for source in train:
            for text in source.pieces():
                tokens = tokenizer.array(text)
                tokens[:left].tofile(training)
                if held_out is None:
                    tokens[left:].tofile(holding)
                left -= min(left, len(tokens))
        for source in held_out or ():
            for text in source.pieces():
                tokenizer.array(text).tofile(holding)
        _sync(training)
        _sync(holding)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish(temporary: Path, folder: Path) -> Store:
    """Give a finished store its name, in place of a torn one; where another process was first, its store is the one."""
    sync_folder(temporary)
    with (folder.parent / ".lock").open("a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: two processes replacing one torn store may collide
            fcntl.flock(lock, fcntl.LOCK_EX)
        store = load_store(folder)
        if store is None:
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            sync_folder(folder.parent)
            store = load_store(folder)
    if store is None:
        raise ConfigError(Problem("data", "the prepared tokens vanished while they were written", got=str(folder), hint="start again"))
    return store
