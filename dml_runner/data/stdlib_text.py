"""``data=stdlib_text``: the help topics of pydoc, English text that ships with Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.data.parts.facts import open_tokens, token_facts
from dml_runner.data.parts.source import StringSource
from dml_runner.data.parts.store import Corpus
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import StdlibText

if TYPE_CHECKING:
    from dml_runner.data.base import Data


def prepare(words: StdlibText, task: Task, cache: Path) -> DataFacts:
    """Store the tokens of all topics, joined in the order of their names; the last 10 % are held out.

    Raises:
        ConfigError: this Python was installed without its help topics, or ``seq_len`` exceeds the text.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        problem = Problem("data.name", "this Python has no pydoc_data.topics", got="stdlib_text", hint="use data=text data.path=FILE")
        raise ConfigError(problem) from None
    text = "".join(topics[name] for name in sorted(topics))
    return token_facts(words.name, Corpus([StringSource("pydoc_data.topics", "data.name", text)], None), words, task, cache)


def open_data(words: StdlibText, task: Task, facts: DataFacts, seed: int) -> Data:
    """The stored tokens, ready to give batches.

    Raises:
        ConfigError: they are gone.
    """
    return open_tokens(task, facts, seed)
