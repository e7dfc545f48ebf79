"""Characters of words as ids: a word is its UTF-8 bytes between two borders, filled up with padding (Jozefowicz et al. 2016)."""

from __future__ import annotations

BYTES = 256
"""Ids below are bytes of a word."""
BEGIN_WORD = 256
"""Stands before a word's first byte."""
END_WORD = 257
"""Stands behind its last byte."""
PADDING = 258
"""Fills a word up to the length of all; a padded word is nothing else."""
CHARACTERS = 262
"""Ids that have an embedding, as many as in the published weights; those above ``PADDING`` are free for words that no text writes."""
