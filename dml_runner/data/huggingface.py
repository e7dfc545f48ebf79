"""``data=huggingface``: a data set of the datasets library, as running text or as labelled texts."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.data.parts.facts import open_tokens, token_facts
from dml_runner.data.parts.hub import Table, open_tables
from dml_runner.data.parts.hub_rows import HubRows, HubText, Spool
from dml_runner.data.parts.labelled_store import labelled_facts, refuse_other_tasks
from dml_runner.data.parts.labels import Split
from dml_runner.data.parts.store import Corpus
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import HuggingfaceData

if TYPE_CHECKING:
    from dml_runner.data.base import Data


def prepare(words: HuggingfaceData, task: Task, cache: Path) -> DataFacts:
    """Store what the model reads of the data set: its texts as tokens, with their labels where the model learns them.

    Files, and folders of files, are read as they are. What is on the hub the library fetches and keeps as it always does or, where
    ``streaming`` is set, is read from there once and kept nowhere but in our store.

    Raises:
        ConfigError: the library is missing, there is no such data set, split or column, or its rows are malformed.
    """
    labelled = task.objective == "classify"
    if labelled:
        refuse_other_tasks(words.name, task)
    train, held_out = open_tables(words, cache)
    text, label = _columns(words, train, labelled)
    tables = [train] if held_out is None else [train, held_out]
    for table in tables:
        table.require(("data.text_column", text), *([("data.label_column", label)] if label is not None else []))
    with ExitStack() as stack:
        spools = [stack.enter_context(Spool(cache)) if words.streaming else None for _ in tables]
        sources = [HubRows(table, text, label, spool) for table, spool in zip(tables, spools, strict=True)]
        if label is None:
            corpus = Corpus([HubText(sources[0])], [HubText(source) for source in sources[1:]] or None)
            return token_facts(words.name, corpus, words, task, cache)
        return labelled_facts(words.name, Split(sources[:1], sources[1:] or None), words, task, cache, (text, label))


def open_data(words: HuggingfaceData, task: Task, facts: DataFacts, seed: int) -> Data:
    """What was stored, ready to give batches; what is hidden of running text depends on ``seed``.

    Raises:
        ConfigError: it is gone.
    """
    if facts.kind == "tokens":
        return open_tokens(task, facts, seed)
    from dml_runner.data.parts.labelled import LabelledData

    return LabelledData(facts, task)


def _columns(words: HuggingfaceData, table: Table, labelled: bool) -> tuple[str, str | None]:
    """The columns that are read: the text's, and where labels are learned the label's.

    Raises:
        ConfigError: one is not named, or is named for nothing.
    """
    there = ", ".join(table.columns)
    problems = []
    if words.text_column is None:
        problems.append(Problem("data.text_column", "the model reads texts, and their column is not named", "null", there))
    if labelled and words.label_column is None:
        problems.append(Problem("data.label_column", "the model is a classifier, and the column of labels is not named", "null", there))
    if not labelled and words.label_column is not None:
        problems.append(Problem("data.label_column", "the model learns no labels", got=words.label_column, allowed="null"))
    if problems:
        raise ConfigError(*problems)
    assert words.text_column is not None
    return words.text_column, words.label_column
