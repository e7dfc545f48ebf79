"""``data=labelled_text``: files of rows, each a text and its label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.data.parts.files import find_names
from dml_runner.data.parts.labelled_store import labelled_facts, refuse_other_tasks
from dml_runner.data.parts.labels import Split
from dml_runner.data.parts.rows import FileRows, Row
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import LabelledText

if TYPE_CHECKING:
    from dml_runner.data.base import Data


def prepare(words: LabelledText, task: Task, cache: Path) -> DataFacts:
    """Store the texts of the files ``words.path`` and, where given, ``words.eval_path``, as tokens with their labels.

    Raises:
        ConfigError: the model learns no labels of texts, a file is missing or malformed, or there are too few rows or labels.
    """
    refuse_other_tasks(words.name, task)
    return labelled_facts(words.name, _split(words), words, task, cache, (words.text_column, words.label_column))


def open_data(words: LabelledText, task: Task, facts: DataFacts, seed: int) -> Data:
    """The stored texts, ready to give batches.

    Raises:
        ConfigError: they are gone.
    """
    from dml_runner.data.parts.labelled import LabelledData

    return LabelledData(facts, task)


def _split(words: LabelledText) -> Split[Row]:
    names, problems = find_names("data.path", words.path)
    held_out: list[str] | None = None
    if words.eval_path is not None:
        held_out, more = find_names("data.eval_path", words.eval_path)
        problems += more
    if problems:
        raise ConfigError(*problems)

    def tables(found: list[str], key: str) -> list[FileRows]:
        return [FileRows(name, key, words.text_column, words.label_column) for name in found]

    return Split(tables(names, "data.path"), None if held_out is None else tables(held_out, "data.eval_path"))
