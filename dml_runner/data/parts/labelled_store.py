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
from dml_runner.data.parts.labels import Labels, Part, Split, find_labels, listed
from dml_runner.data.parts.rows import Row
from dml_runner.data.parts.store import WHOLE_TEXT
from dml_runner.data.parts.tokenizer import Tokenizer, choose, identity, tokenizer_for
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.files import write_json
from dml_runner.schema.data import Texts

FORMAT = 2
AT_ONCE = 1 << 20
"""Token ids that are gathered before they are written."""
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


def labelled_facts(name: str, split: Split[Row], words: Texts, task: Task, cache: Path, columns: Sequence[str]) -> DataFacts:
    """Store the labelled texts of the given tables and say what they are.

    Args:
        name: of the option.
        split: the tables.
        words: which tokenizer, the longest text, and what a malformed row does.
        task: what the model wants.
        cache: folder that keeps prepared data.
        columns: what is read of each table.

    Raises:
        ConfigError: the task wants no labelled texts, a row is malformed, there are too few rows or labels, or the store cannot be
            written.
    """
    refuse_other_tasks(name, task)
    store, digests = store_labelled(split, words, task, cache, columns)
    return DataFacts(
        kind="labelled_text",
        train_samples=store.counts["train"],
        eval_samples=store.counts["eval"],
        sample_weight=1,
        sample_tokens=round(int(store.ends("train")[-1]) / store.counts["train"]),
        vocabulary=store.size,
        seq_len=store.longest,
        digests=digests,
        store=str(store.folder),
        classes=len(store.labels),
        skipped=store.skipped,
        labels=listed(store.labels),
    )


def refuse_other_tasks(name: str, task: Task) -> None:
    """Labelled texts are there to learn the labels.

    Raises:
        ConfigError: the model reads images or learns something else.
    """
    if task.reads == "images":
        what, hint = "holds labelled texts, and the model reads images", "data=idx or data=digits"
        raise ConfigError(Problem("data", what, got=f"data={name}", hint=hint))
    if task.objective != "classify":
        what, hint = "holds labelled texts, and the model learns none of their labels", "model.head=classifier, or data=text"
        raise ConfigError(Problem("data", what, got=f"data={name}", hint=hint))


def store_labelled(
    split: Split[Row], words: Texts, task: Task, cache: Path, columns: Sequence[str]
) -> tuple[LabelledStore, dict[str, str]]:
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
    made_of = [FORMAT, identity(choose(words, task), words), words.bad, length, list(columns), tables]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    build = partial(_build, split, words, task, length, digests)
    return make_once(cache.absolute() / "labelled" / key, load_labelled, build), digests


def _build(split: Split[Row], words: Texts, task: Task, length: int, digests: dict[str, str], folder: Path) -> None:
    labels = find_labels(split, words.bad == "skip")
    part: Part | None = None if choose(words, task).name in WHOLE_TEXT else "train"
    tokenizer = tokenizer_for(words, task, lambda: (row.text for where, row in _good(split, labels) if part in (None, where)))
    with _Writer(folder, "train", tokenizer) as train, _Writer(folder, "eval", tokenizer) as held_out:
        for where, row in _good(split, labels):
            (train if where == "train" else held_out).add(tokenizer.sample(row.text, length), labels.ids[row.label])
    if {source.name: source.digest() for source in split.tables} != digests:
        raise ConfigError(Problem(split.train[0].key, "a file changed while it was read", hint="start again when it is complete"))
    (folder / TOKENIZER).mkdir()
    tokenizer.save(folder / TOKENIZER)
    about: dict[str, Any] = {"size": tokenizer.size, "dtype": tokenizer.dtype.str, "counts": dict(labels.counts)}
    about |= {"longest": max(train.longest, held_out.longest), "labels": list(labels.ids), "skipped": labels.skipped}
    write_json(folder / "store.json", about)


def _good(split: Split[Row], labels: Labels) -> Iterator[tuple[Part, Row]]:
    for part, _, row in split.rows():
        if isinstance(row, Row) and row.label in labels.ids:
            yield part, row


class _Writer:
    """Writes one part of a store, text by text."""

    def __init__(self, folder: Path, part: Part, tokenizer: Tokenizer) -> None:
        self.longest = 0
        self._files = [(folder / f"{part}.{kind}").open("wb") for kind in ("bin", "ends", "labels")]
        self._dtypes = (tokenizer.dtype.str, "<i8", "<i8")
        self._waiting: tuple[list[int], list[int], list[int]] = ([], [0], [])
        self._end = 0

    def __enter__(self) -> _Writer:
        return self

    def add(self, tokens: list[int], label: int) -> None:
        """Write one text and the number of its label."""
        self.longest, self._end = max(self.longest, len(tokens)), self._end + len(tokens)
        ids, ends, labels = self._waiting
        ids += tokens
        ends.append(self._end)
        labels.append(label)
        if len(ids) > AT_ONCE:
            self._write()

    def _write(self) -> None:
        for file, values, dtype in zip(self._files, self._waiting, self._dtypes, strict=True):
            file.write(np.array(values, dtype).data)
            values.clear()

    def __exit__(self, *raised: object) -> None:
        self._write()
        for file in self._files:
            settle(file)
            file.close()
