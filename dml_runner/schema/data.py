"""What the model is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Count, Name, Section

Tokenizer = Literal["char", "byte"]


class StdlibText(Section):
    """460 kB of English that ships with Python itself (the help topics of pydoc): nothing to download."""

    name: Literal["stdlib_text"]
    """The data."""
    seq_len: Count | None
    """Tokens of a sample; null: ``model.context``."""
    tokenizer: Tokenizer
    """``char``: one token a character that occurs; ``byte``: one token a UTF-8 byte, 256 in all."""


class Text(Section):
    """Plain UTF-8 text files, cut into sequences."""

    name: Literal["text"]
    """The data."""
    path: Name | tuple[Name, ...]
    """A text file, a glob, or a list of them, read in the order given (a glob's files by name)."""
    eval_path: Name | tuple[Name, ...] | None
    """Held-out text, in the same forms; null: the last 10 % of ``path``."""
    seq_len: Count | None
    """Tokens of a sample; null: ``model.context``."""
    tokenizer: Tokenizer
    """``char``: one token a character that occurs; ``byte``: one token a UTF-8 byte, 256 in all."""


Data = Annotated[StdlibText | Text, Field(discriminator="name")]
