"""The token store: a folder of raw token arrays.

``train.bin`` and ``eval.bin`` hold ids as raw little-endian integers, ``tokenizer/`` what made them, and ``store.json`` says what they are.
Text is read, tokenised and written a piece at a time, so that it may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from dml_runner.data.parts.folder import TOKENIZER, make_once, numbers, settle
from dml_runner.data.parts.plain_tokenizers import CharTokenizer, code_points_of, name_of
from dml_runner.data.parts.source import Skipped, Source
from dml_runner.data.parts.subword import recut
from dml_runner.data.parts.tokenizer import Tokenizer, choose, identity, load_tokenizer, tokenizer_for
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import Task
from dml_runner.files import write_json
from dml_runner.schema.data import Texts

FORMAT = 2
"""Version of the folder's layout; another version is another store."""
HELD_OUT = "last 10 %"
WHOLE_TEXT = ("char", "word")
"""Tokenizers that have read the whole text once they are made."""

Part = Literal["train", "eval"]


@dataclass(frozen=True)
class Store:
    """A complete token store.

    Attributes:
        folder: where it is.
        tokenizer: gave the ids, and reads them back.
        counts: tokens of ``train`` and ``eval``.
        skipped: malformed lines that were passed over.
    """

    folder: Path
    tokenizer: Tokenizer
    counts: dict[str, int]
    skipped: int

    def tokens(self, part: Part) -> np.ndarray:
        """The ids of one part: in memory and ``checked`` if they are less than 1 GiB, else mapped, and for their reader to check.

        Raises:
            ConfigError: an id is past the vocabulary.
        """
        ids = numbers(self.folder / f"{part}.bin", self.tokenizer.dtype.str)
        return ids if isinstance(ids.base, np.memmap) else self.checked(ids)

    def checked(self, ids: np.ndarray) -> np.ndarray:
        """``ids``, if all are in the vocabulary; another one would end in a crash inside the device.

        Raises:
            ConfigError: one is not.
        """
        highest = int(ids.max(initial=0))
        if highest >= self.tokenizer.size:
            what, hint = "the prepared tokens are damaged: an id is past the vocabulary", f"remove {self.folder} and start again"
            raise ConfigError(Problem("data", what, got=str(highest), allowed=f"0 to {self.tokenizer.size - 1}", hint=hint))
        return ids


@dataclass(frozen=True)
class Corpus:
    """Texts to train on, one after the other, and texts held out; None: the last 10 % of the tokens of the others."""

    train: Sequence[Source]
    held_out: Sequence[Source] | None

    def sources(self) -> tuple[Source, ...]:
        """All of them."""
        return (*self.train, *(self.held_out or ()))

    def digests(self) -> dict[str, str]:
        """SHA-256 of each by its name."""
        return {source.name: source.digest() for source in self.sources()}


def load_store(folder: Path) -> Store | None:
    """The store in ``folder``; None if there is none or a file of it is missing, torn or of another size."""
    try:
        about = json.loads((folder / "store.json").read_text())
        counts = {part: int(about["counts"][part]) for part in ("train", "eval")}
        width = np.dtype(about["dtype"]).itemsize
        whole = all((folder / f"{part}.bin").stat().st_size == count * width for part, count in counts.items())
        tokenizer = load_tokenizer(folder / TOKENIZER)
        whole = whole and (about["size"], about["dtype"]) == (tokenizer.size, tokenizer.dtype.str)
        return Store(folder, tokenizer, counts, int(about["skipped"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def open_store(folder: str) -> Store:
    """The store in ``folder``.

    Raises:
        ConfigError: it is gone or damaged.
    """
    store = load_store(Path(folder))
    if store is None:
        raise ConfigError(Problem("data", "the prepared tokens are missing or damaged", got=folder, hint="prepare the data again"))
    return store


def store_tokens(corpus: Corpus, words: Texts, task: Task, cache: Path) -> tuple[Store, dict[str, str]]:
    """The token store of the given texts, made unless it is there, and the SHA-256 of each text by its name.

    Args:
        corpus: the texts.
        words: which tokenizer, and what a malformed line does.
        task: what the model wants, which tells the tokenizer where the words leave it open.
        cache: folder that keeps stores, under ``tokens/``.

    Raises:
        ConfigError: there is no such tokenizer; a text is malformed, or changes while it is read; or the store cannot be written.
    """
    digests = corpus.digests()
    held_out = HELD_OUT if corpus.held_out is None else [digests[s.name] for s in corpus.held_out]
    made_of = [FORMAT, identity(choose(words, task), words), words.bad, [digests[s.name] for s in corpus.train], held_out]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    build = partial(_build, corpus, words, task, digests)
    return make_once(cache.absolute() / "tokens" / key, load_store, build), digests


def _build(corpus: Corpus, words: Texts, task: Task, digests: dict[str, str], folder: Path) -> None:
    skips = words.bad == "skip"
    tokenizer, skipped = _tokenizer(corpus, words, task, skips)
    counts = _write(folder, corpus, tokenizer, skips)
    if corpus.digests() != digests:
        raise ConfigError(Problem(corpus.train[0].key, "a file changed while it was read", hint="start again when it is complete"))
    (folder / TOKENIZER).mkdir()
    tokenizer.save(folder / TOKENIZER)
    about: dict[str, Any] = {"format": FORMAT, "size": tokenizer.size, "dtype": tokenizer.dtype.str, "counts": counts, "skipped": skipped}
    write_json(folder / "store.json", about)


def _tokenizer(corpus: Corpus, words: Texts, task: Task, skips: bool) -> tuple[Tokenizer, int]:
    """The tokenizer and the number of malformed lines; everything is read once, so that all that is malformed is known."""
    problems: list[Problem] = []
    skipped = Skipped()

    def checked() -> Iterator[str]:
        for source in corpus.sources():
            try:
                yield from source.pieces(skipped if skips else None)
            except ConfigError as error:
                problems.extend(error.problems)

    tokenizer: Tokenizer | None = None
    if choose(words, task).name in WHOLE_TEXT:
        tokenizer = tokenizer_for(words, task, checked)
    else:
        for _ in checked():
            pass
    if problems:
        raise ConfigError(*problems)
    tokenizer = tokenizer or tokenizer_for(words, task, lambda: _text(corpus.train, skips))
    if isinstance(tokenizer, CharTokenizer) and choose(words, task).file is not None:
        _refuse_unknown(corpus, tokenizer, skips)
    return tokenizer, skipped.lines


def _refuse_unknown(corpus: Corpus, tokenizer: CharTokenizer, skips: bool) -> None:
    """Characters that a kept tokenizer has no token for would be read as others, and every figure be wrong."""
    known = set(tokenizer.vocabulary)
    for source in corpus.sources():
        unknown = [code for code in code_points_of(_text([source], skips)) if code not in known]
        if unknown:
            what = f"{len(unknown)} character{'s have' if len(unknown) > 1 else ' has'} no token in the text the run was trained on"
            raise ConfigError(Problem(source.key, what, got=name_of(chr(unknown[0])), allowed=f"its {tokenizer.size} characters"))


def _text(sources: Sequence[Source], skips: bool) -> Iterator[str]:
    for source in sources:
        yield from recut(source.pieces(Skipped() if skips else None))


def _write(folder: Path, corpus: Corpus, tokenizer: Tokenizer, skips: bool) -> dict[str, int]:
    """Write the ids of both parts; the number of each."""
    with (folder / "train.bin").open("w+b") as training, (folder / "eval.bin").open("wb") as holding:
        total = _append(training, _text(corpus.train, skips), tokenizer)
        counts = {"train": total, "eval": 0}
        if corpus.held_out is None:
            counts = {"train": total * 9 // 10, "eval": total - total * 9 // 10}
            training.seek(counts["train"] * tokenizer.dtype.itemsize)
            shutil.copyfileobj(training, holding, 1 << 22)
            training.truncate(counts["train"] * tokenizer.dtype.itemsize)
        else:
            counts["eval"] = _append(holding, _text(corpus.held_out, skips), tokenizer)
        settle(training)
        settle(holding)
    return counts


def _append(file: IO[bytes], pieces: Iterable[str], tokenizer: Tokenizer) -> int:
    count = 0
    for text in pieces:
        tokens = tokenizer.array(text)
        file.write(tokens.data)
        count += len(tokens)
    return count
