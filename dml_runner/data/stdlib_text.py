"""``data=stdlib_text``: the help topics of pydoc, English text that ships with Python."""

from __future__ import annotations

from pathlib import Path

from dml_runner.data.parts.facts import token_facts
from dml_runner.data.parts.source import StringSource
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.schema.data import StdlibText


def prepare(words: StdlibText, seq_len: int, cache: Path) -> DataFacts:
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
    return token_facts([StringSource("pydoc_data.topics", "data.name", text)], None, words.tokenizer, seq_len, cache)
