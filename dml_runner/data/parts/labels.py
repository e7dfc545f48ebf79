"""From rows to labels: which are trained on, which are held out, what is wrong with them, and which number a label has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from dml_runner.data.parts.rows import BadRow, RowSource, Sample
from dml_runner.errors import ConfigError, Problem

HELD_OUT_EVERY = 10
"""Where no rows are named to hold out, every tenth good one is."""
NAMED = 5
"""Malformed rows that an error names; it counts the others."""
FEWEST_LABELS = 2
LISTED = 100_000
"""Characters that the words of the labels may take together to be listed in job.yaml, which every rank reads."""

Part = Literal["train", "eval"]
R = TypeVar("R", bound=Sample)


@dataclass(frozen=True)
class Split(Generic[R]):
    """Tables to train on, and tables held out; None: every tenth row of the others.

    Attributes:
        train: tables to train on.
        held_out: tables held out.
        noun: what the user calls a row.
        named: malformed rows that an error names; it counts the others.
    """

    train: Sequence[RowSource[R]]
    held_out: Sequence[RowSource[R]] | None
    noun: str = "row"
    named: int = NAMED

    def rows(self) -> Iterator[tuple[Part, RowSource[R], R | BadRow]]:
        """Every row with what it is for and its table; the training tables come first.

        Raises:
            ConfigError: a table cannot be read as one.
        """
        good = 0
        for source in self.train:
            for row in source.rows():
                well = not isinstance(row, BadRow)
                good += well
                held_out = self.held_out is None and well and good % HELD_OUT_EVERY == 0
                yield "eval" if held_out else "train", source, row
        for source in self.held_out or ():
            for row in source.rows():
                yield "eval", source, row

    @property
    def tables(self) -> tuple[RowSource[R], ...]:
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

    noun: str
    named: int
    labels: dict[Part, dict[str, tuple[int, Problem]]] = field(default_factory=lambda: {"train": {}, "eval": {}})
    bad: int = 0
    shown: list[Problem] = field(default_factory=list)

    def take(self, part: Part, source: RowSource[Any], row: Sample | BadRow) -> None:
        """Note one row."""
        if isinstance(row, BadRow):
            self._note(1, _at(source, row.place, row.what))
            return
        known = self.labels[part].get(row.label)
        if known is None:
            known = (0, _at(source, row.place, f"the label {row.label!r} is in no training {self.noun}", "held out"))
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
        if len(self.shown) < self.named:
            self.shown.append(problem)


def find_labels(split: Split[R], skip: bool, each: Callable[[Part, R], None] | None = None) -> Labels:
    """Read every row once: what is malformed, and which labels there are.

    Args:
        split: the tables.
        skip: whether malformed rows are passed over.
        each: called with every good row and what it is for, as it is read.

    Raises:
        ConfigError: a table cannot be read as one, rows are malformed, or there are too few rows or labels.
    """
    found = _Found(split.noun, split.named)
    for part, source, row in split.rows():
        found.take(part, source, row)
        if each is not None and not isinstance(row, BadRow):
            each(part, row)
    found.refuse_unknown()
    if found.bad and not skip:
        total = found.bad + found.count("train") + found.count("eval")
        hint = f"data.bad=skip passes over such {split.noun}s and counts them"
        raise ConfigError(*found.shown, Problem("data.bad", f"{found.bad} of {total} {split.noun}s are malformed", got="stop", hint=hint))
    _refuse_too_few(split, found)
    counts: dict[Part, int] = {"train": found.count("train"), "eval": found.count("eval")}
    return Labels(label_ids(found.labels["train"]), counts, found.bad)


def _refuse_too_few(split: Split[R], found: _Found) -> None:
    train, total = split.train[0].key, found.count("train") + found.count("eval")
    passed = f"; {found.bad} malformed ones were passed over" if found.bad else ""
    labels = list(found.labels["train"])
    if not labels:
        raise ConfigError(Problem(train, f"no good {split.noun} to train on{passed}"))
    if not found.count("eval") and split.held_out is None:
        hint = f"every tenth {split.noun} is held out; or name others by data.eval_path"
        raise ConfigError(
            Problem(train, f"too few good {split.noun}s{passed}", got=str(total), allowed=f"at least {HELD_OUT_EVERY}", hint=hint)
        )
    if not found.count("eval"):
        raise ConfigError(Problem(split.tables[-1].key, f"no good {split.noun} to hold out{passed}"))
    if len(labels) < FEWEST_LABELS:
        raise ConfigError(
            Problem(train, f"every training {split.noun} has the same label", repr(labels[0]), f"at least {FEWEST_LABELS} labels")
        )


def _at(source: RowSource[Any], place: int | str, what: str, purpose: str = "") -> Problem:
    where = f"{source.name}/{place}" if isinstance(place, str) else f"{source.name}:{place}"
    return Problem(source.key, f"{what} at {where}" + (f" ({purpose})" if purpose else ""))


def label_ids(labels: Iterable[str]) -> dict[str, int]:
    """Numbers from 0 in sorted order: by value where all labels are whole numbers, else as words."""
    words = sorted(labels)
    if all(_is_whole(word) for word in words):
        words.sort(key=int)
    return {word: number for number, word in enumerate(words)}


def listed(words: Sequence[str]) -> tuple[str, ...]:
    """The words of the labels as ``DataFacts`` lists them: none of them where they are too many."""
    return tuple(words) if sum(map(len, words)) + len(words) <= LISTED else ()


def _is_whole(word: str) -> bool:
    return word.isascii() and word.removeprefix("-").isdigit() and len(word) < 20
