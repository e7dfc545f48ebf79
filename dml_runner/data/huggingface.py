"""``data=huggingface``: a data set of the datasets library, as running text, as labelled texts or as labelled images."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.data.parts.facts import open_tokens, token_facts
from dml_runner.data.parts.hub import Table, open_tables
from dml_runner.data.parts.hub_rows import HubPictures, HubRows, HubText, Spool
from dml_runner.data.parts.labelled_store import labelled_facts, refuse_other_tasks
from dml_runner.data.parts.labels import Split
from dml_runner.data.parts.picture_store import picture_facts, store_pictures
from dml_runner.data.parts.store import Corpus
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import HuggingfaceData

if TYPE_CHECKING:
    from dml_runner.data.base import Data


def prepare(words: HuggingfaceData, task: Task, cache: Path) -> DataFacts:
    """Store what the model reads of the data set: its texts as tokens, with their labels where the model learns them, or its images.

    Files, and folders of files, are read as they are. What is on the hub the library fetches and keeps as it always does or, where
    ``streaming`` is set, is read from there once and kept nowhere but in our store.

    Raises:
        ConfigError: the library is missing, there is no such data set, split or column, or its rows are malformed.
    """
    _refuse_both(words, task)
    labelled = task.objective == "classify"
    if labelled and task.reads != "images":
        refuse_other_tasks(words.name, task)
    train, held_out = open_tables(words, cache)
    sample, label = _columns(words, train, task)
    tables = [train] if held_out is None else [train, held_out]
    key = "data.image_column" if task.reads == "images" else "data.text_column"
    for table in tables:
        table.require((key, sample), *([("data.label_column", label)] if label is not None else []))
    if task.reads == "images":
        assert label is not None
        return _images(words, [HubPictures(table, sample, label) for table in tables], cache)
    with ExitStack() as stack:
        spools = [stack.enter_context(Spool(cache)) if words.streaming else None for _ in tables]
        sources = [HubRows(table, sample, label, spool) for table, spool in zip(tables, spools, strict=True)]
        if label is None:
            corpus = Corpus([HubText(sources[0])], [HubText(source) for source in sources[1:]] or None)
            return token_facts(words.name, corpus, words, task, cache)
        return labelled_facts(words.name, Split(sources[:1], sources[1:] or None), words, task, cache, (sample, label))


def open_data(words: HuggingfaceData, task: Task, facts: DataFacts, seed: int) -> Data:
    """What was stored, ready to give batches; what is hidden of running text, and how images are cut, depends on ``seed``.

    Raises:
        ConfigError: it is gone.
    """
    if facts.kind == "tokens":
        return open_tokens(task, facts, seed)
    if facts.kind == "images":
        from dml_runner.data.parts.picture_data import PictureData

        return PictureData(facts, words, None, seed)
    from dml_runner.data.parts.labelled import LabelledData

    return LabelledData(facts, task)


def _images(words: HuggingfaceData, sources: list[HubPictures], cache: Path) -> DataFacts:
    stamps = [source.stamp() for source in sources]
    store = store_pictures(Split(sources[:1], sources[1:] or None, "image"), stamps, words.bad == "skip", cache)
    return picture_facts(words.name, [source.name for source in sources], store, words)


def _refuse_both(words: HuggingfaceData, task: Task) -> None:
    """A sample is a text or an image."""
    if words.text_column is not None and words.image_column is not None:
        other = "text_column" if task.reads == "images" else "image_column"
        got = f"text_column={words.text_column}, image_column={words.image_column}"
        hint = f"the model reads {task.reads}: data.{other}=null"
        raise ConfigError(Problem("data.image_column", "a column of texts and one of images are named, and one is read", got, hint=hint))


def _columns(words: HuggingfaceData, table: Table, task: Task) -> tuple[str, str | None]:
    """The columns that are read: the text's or the image's, and where labels are learned the label's.

    Raises:
        ConfigError: one is not named, or is named for nothing.
    """
    there, labelled, images = ", ".join(table.columns), task.objective == "classify", task.reads == "images"
    text, image = ("data.text_column", words.text_column), ("data.image_column", words.image_column)
    (key, sample), (idle_key, idle) = (image, text) if images else (text, image)
    kind, idle_kind = ("images", "texts") if images else ("texts", "images")
    problems = []
    if sample is None:
        problems.append(Problem(key, f"the model reads {kind}, and their column is not named", "null", there))
    if idle is not None:
        problems.append(Problem(idle_key, f"the model reads no {idle_kind}", got=idle, allowed="null"))
    if labelled and words.label_column is None:
        problems.append(Problem("data.label_column", "the model is a classifier, and the column of labels is not named", "null", there))
    if not labelled and words.label_column is not None:
        problems.append(Problem("data.label_column", "the model learns no labels", got=words.label_column, allowed="null"))
    if problems:
        raise ConfigError(*problems)
    assert sample is not None
    return sample, words.label_column
