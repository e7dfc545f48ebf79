"""The store of labelled texts: token ids one after the other, where each text ends, and its label.

``train.bin`` holds ids, ``train.ends`` int64 positions, ``train.labels`` int64 numbers; and the same of ``eval``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dml_runner.data.parts.folder import TOKENIZER, make_once, numbers, settle
from dml_runner.data.parts.labels import Labels, Part, Split, find_labels
from dml_runner.data.parts.plain_tokenizers import WordTokenizer, words_of
from dml_runner.data.parts.rows import Row
from dml_runner.data.parts.tokenizer import Tokenizer, choose, identity, tokenizer_for
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import Task
from dml_runner.files import write_json
from dml_runner.schema.data import Texts

FORMAT = 1
PARTS: tuple[Part, Part] = ("train", "eval")


@dataclass(frozen=True)
class LabelledStore:
    """A complete store of labelled texts.

    Attributes:
        folder: where it is.
        size: token ids that can occur.
        dtype: of one id.
        counts: texts of ``train`` and ``eval``.
        longest: tokens of the longest text.
        labels: the words of the labels, in the order of their numbers.
        skipped: malformed rows that were passed over.
    """

    folder: Path
    size: int
    dtype: str
    counts: dict[str, int]
    longest: int
    labels: tuple[str, ...]
    skipped: int

    def tokens(self, part: Part) -> np.ndarray:
        """The ids of all texts of one part."""
        return numbers(self.folder / f"{part}.bin", self.dtype)

    def ends(self, part: Part) -> np.ndarray:
        """Where each text begins and the one before it ends, int64 (texts + 1,)."""
        return numbers(self.folder / f"{part}.ends", "<i8")

    def numbers(self, part: Part) -> np.ndarray:
        """The label of each text, int64."""
        return numbers(self.folder / f"{part}.labels", "<i8")


def load_labelled(folder: Path) -> LabelledStore | None:
    """The store in ``folder``; None if there is none or a file of it is missing, torn or of another size."""
    try:
        about = json.loads((folder / "store.json").read_text())
        store = LabelledStore(folder, labels=tuple(about.pop("labels")), **about)
        width = np.dtype(store.dtype).itemsize
        for part in PARTS:
            count, ends = store.counts[part], folder / f"{part}.ends"
            if ends.stat().st_size != 8 * (count + 1) or (folder / f"{part}.labels").stat().st_size != 8 * count:
                return None
            if (folder / f"{part}.bin").stat().st_size != width * int(np.fromfile(ends, "<i8")[-1]):
                return None
        return store if any((folder / TOKENIZER).iterdir()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_labelled(split: Split, words: Texts, task: Task, cache: Path, columns: Sequence[str]) -> tuple[LabelledStore, dict[str, str]]:
    """The store of the given tables, made unless it is there, and the SHA-256 of each table by its name.

    Args:
        split: the tables.
        words: which tokenizer, and the longest text.
        task: what the model wants.
        cache: folder that keeps stores, under ``labelled/``.
        columns: which columns are read.

    Raises:
        ConfigError: a row is malformed, there are too few rows or labels, or the store cannot be written.
    """
    length = words.seq_len or task.length
    assert length is not None, "who reads text has a longest sequence"
    digests = {source.name: source.digest() for source in split.tables}
    tables = [None if group is None else [digests[s.name] for s in group] for group in (split.train, split.held_out)]
    unknown = task.reads == "characters"
    made_of = [FORMAT, identity(choose(words, task), words), words.bad, length, unknown, list(columns), tables]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    build = partial(_build, split, words, task, length, digests)
    return make_once(cache.absolute() / "labelled" / key, load_labelled, build), digests


def _build(split: Split, words: Texts, task: Task, length: int, digests: dict[str, str], folder: Path) -> None:
    labels = find_labels(split, words.bad == "skip")
    tokenizer = _tokenizer(split, labels, words, task)
    longest = 0
    for part in PARTS:
        longest = max(longest, _write(folder, split, labels, part, tokenizer, length))
    if {source.name: source.digest() for source in split.tables} != digests:
        raise ConfigError(Problem(split.train[0].key, "a file changed while it was read", hint="start again when it is complete"))
    (folder / TOKENIZER).mkdir()
    tokenizer.save(folder / TOKENIZER)
    about: dict[str, Any] = {"size": tokenizer.size, "dtype": tokenizer.dtype.str, "counts": dict(labels.counts), "longest": longest}
    write_json(folder / "store.json", {**about, "labels": list(labels.ids), "skipped": labels.skipped})


def _tokenizer(split: Split, labels: Labels, words: Texts, task: Task) -> Tokenizer:
    """The tokenizer of the training texts; a model that reads characters gets every word there is, held-out ones too."""

    def texts(*parts: Part) -> Iterator[str]:
        for part in parts:
            yield from (row.text + "\n" for row in _good(split, labels, part))

    if task.reads == "characters":
        return WordTokenizer(words_of(texts(*PARTS)))
    return tokenizer_for(words, task, partial(texts, "train"))


def _good(split: Split, labels: Labels, part: Part) -> Iterator[Row]:
    for where, _, row in split.rows():
        if where == part and isinstance(row, Row) and row.label in labels.ids:
            yield row


def _write(folder: Path, split: Split, labels: Labels, part: Part, tokenizer: Tokenizer, length: int) -> int:
    """Write one part; the longest text's tokens."""
    longest = end = 0
    with (
        (folder / f"{part}.bin").open("wb") as ids,
        (folder / f"{part}.ends").open("wb") as ends,
        (folder / f"{part}.labels").open("wb") as numbered,
    ):
        ends.write(np.zeros(1, "<i8").tobytes())
        for row in _good(split, labels, part):
            tokens = tokenizer.sample(row.text, length)
            longest, end = max(longest, len(tokens)), end + len(tokens)
            ids.write(np.array(tokens, tokenizer.dtype).tobytes())
            ends.write(np.array([end], "<i8").tobytes())
            numbered.write(np.array([labels.ids[row.label]], "<i8").tobytes())
        for file in (ids, ends, numbered):
            settle(file)
    return longest
