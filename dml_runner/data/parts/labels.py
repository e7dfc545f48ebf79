"""From rows to labels: which are trained on, which are held out, what is wrong with them, and which number a label has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dml_runner.data.parts.rows import BadRow, Row, RowSource
from dml_runner.errors import ConfigError, Problem

HELD_OUT_EVERY = 10
"""Where no rows are named to hold out, every tenth good one is."""
SHOWN = 5
"""Malformed rows that are named; the others are counted."""
FEWEST_LABELS = 2

Part = Literal["train", "eval"]


@dataclass(frozen=True)
class Split:
    """Tables to train on, and tables held out; None: every tenth row of the others."""

    train: Sequence[RowSource]
    held_out: Sequence[RowSource] | None

    def rows(self) -> Iterator[tuple[Part, RowSource, Row | BadRow]]:
        """Every row with what it is for and its table; the training tables come first.

        Raises:
            ConfigError: a table cannot be read as one.
        """
        good = 0
        for source in self.train:
            for row in source.rows():
                good += isinstance(row, Row)
                held_out = self.held_out is None and isinstance(row, Row) and good % HELD_OUT_EVERY == 0
                yield "eval" if held_out else "train", source, row
        for source in self.held_out or ():
            for row in source.rows():
                yield "eval", source, row

    @property
    def tables(self) -> tuple[RowSource, ...]:
        """All tables."""
        return (*self.train, *(self.held_out or ()))


@dataclass(frozen=True)
class Labels:
    """What was found in the rows.

    Attributes:
        ids: the number of each label that occurs in a training row.
        counts: good rows to train on and held out.
        skipped: rows that are malformed, or held out under a label that no training row has.
    """

    ids: dict[str, int]
    counts: dict[Part, int]
    skipped: int


@dataclass
class _Found:
    """What one pass over the rows finds: labels with how many rows have them and the first such, and what is malformed."""

    labels: dict[Part, dict[str, tuple[int, Problem]]] = field(default_factory=lambda: {"train": {}, "eval": {}})
    bad: int = 0
    shown: list[Problem] = field(default_factory=list)

    def take(self, part: Part, source: RowSource, row: Row | BadRow) -> None:
        """Note one row."""
        if isinstance(row, BadRow):
            self._note(1, _at(source, row.place, row.what))
            return
        known = self.labels[part].get(row.label)
        if known is None:
            known = (0, _at(source, row.place, f"the label {row.label!r} is in no training row", "held out"))
        self.labels[part][row.label] = (known[0] + 1, known[1])

    def refuse_unknown(self) -> None:
        """Count held-out rows under labels that cannot be learned among the malformed, and forget them."""
        for label in sorted(self.labels["eval"].keys() - self.labels["train"].keys()):
            self._note(*self.labels["eval"].pop(label))

    def count(self, part: Part) -> int:
        """Good rows of one part."""
        return sum(count for count, _ in self.labels[part].values())

    def _note(self, count: int, problem: Problem) -> None:
        self.bad += count
        if len(self.shown) < SHOWN:
            self.shown.append(problem)


def find_labels(split: Split, skip: bool) -> Labels:
    """Read every row once: what is malformed, and which labels there are.

    Args:
        split: the tables.
        skip: whether malformed rows are passed over.

    Raises:
        ConfigError: a table cannot be read as one, rows are malformed, or there are too few rows or labels.
    """
    found = _Found()
    for part, source, row in split.rows():
        found.take(part, source, row)
    found.refuse_unknown()
    if found.bad and not skip:
        total = found.bad + found.count("train") + found.count("eval")
        hint = "data.bad=skip passes over such rows and counts them"
        raise ConfigError(*found.shown, Problem("data.bad", f"{found.bad} of {total} rows are malformed", got="stop", hint=hint))
    _refuse_too_few(split, found)
    counts: dict[Part, int] = {"train": found.count("train"), "eval": found.count("eval")}
    return Labels(label_ids(found.labels["train"]), counts, found.bad)


def _refuse_too_few(split: Split, found: _Found) -> None:
    train, total = split.train[0].key, found.count("train") + found.count("eval")
    passed = f"; {found.bad} malformed ones were passed over" if found.bad else ""
    labels = list(found.labels["train"])
    if not labels:
        raise ConfigError(Problem(train, f"no good row to train on{passed}"))
    if not found.count("eval") and split.held_out is None:
        hint = "every tenth row is held out; or name others by data.eval_path"
        raise ConfigError(Problem(train, f"too few good rows{passed}", got=str(total), allowed=f"at least {HELD_OUT_EVERY}", hint=hint))
    if not found.count("eval"):
        raise ConfigError(Problem(split.tables[-1].key, f"no good row to hold out{passed}"))
    if len(labels) < FEWEST_LABELS:
        raise ConfigError(Problem(train, "every training row has the same label", repr(labels[0]), f"at least {FEWEST_LABELS} labels"))


def _at(source: RowSource, place: int, what: str, purpose: str = "") -> Problem:
    return Problem(source.key, f"{what} at {source.name}:{place}" + (f" ({purpose})" if purpose else ""))


def label_ids(labels: Iterable[str]) -> dict[str, int]:
    """Numbers from 0 in sorted order: by value where all labels are whole numbers, else as words."""
    words = sorted(labels)
    if all(_is_whole(word) for word in words):
        words.sort(key=int)
    return {word: number for number, word in enumerate(words)}


def _is_whole(word: str) -> bool:
    return word.isascii() and word.removeprefix("-").isdigit() and len(word) < 20
