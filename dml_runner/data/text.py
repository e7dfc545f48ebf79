"""``data=text``: UTF-8 text files, cut into sequences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.data.parts.facts import open_tokens, token_facts
from dml_runner.data.parts.files import find_files
from dml_runner.data.parts.store import Corpus
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import Text

if TYPE_CHECKING:
    from dml_runner.data.base import Data


def prepare(words: Text, task: Task, cache: Path) -> DataFacts:
    """Store the tokens of the files ``words.path`` and, where given, ``words.eval_path``.

    Raises:
        ConfigError: a file is missing, unreadable, empty or not clean UTF-8, or the text is too short.
    """
    train, problems = find_files("data.path", words.path)
    held_out = None
    if words.eval_path is not None:
        held_out, more = find_files("data.eval_path", words.eval_path)
        problems += more
    if problems:
        raise ConfigError(*problems)
    return token_facts(words.name, Corpus(train, held_out), words, task, cache)


def open_data(words: Text, task: Task, facts: DataFacts, seed: int) -> Data:
    """The stored tokens, ready to give batches.

    Raises:
        ConfigError: they are gone.
    """
    return open_tokens(task, facts, seed)
