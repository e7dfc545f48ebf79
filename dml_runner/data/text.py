"""``data=text``: UTF-8 text files, cut into sequences."""

from __future__ import annotations

from pathlib import Path

from dml_runner.data.parts.facts import token_facts
from dml_runner.data.parts.files import find_files
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts
from dml_runner.schema.data import Text


def prepare(words: Text, seq_len: int, cache: Path) -> DataFacts:
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
    return token_facts(train, held_out, words.tokenizer, seq_len, cache)
