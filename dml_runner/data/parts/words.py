"""Words as rows of characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dml_runner.models.parts.characters import BEGIN_WORD, END_WORD, PADDING


def character_table(words: Sequence[str], length: int) -> np.ndarray:
    """Ids of the characters of each word, uint16 (words, length): its UTF-8 bytes between two borders; a long word is cut."""
    table = np.full((len(words), length), PADDING, np.uint16)
    table[:, 0] = BEGIN_WORD
    for row, word in zip(table, words, strict=True):
        letters = word.encode()[: length - 2]
        row[1 : len(letters) + 1] = np.frombuffer(letters, np.uint8)
        row[len(letters) + 1] = END_WORD
    return table
