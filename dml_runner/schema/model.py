"""Which model is trained, and its shape."""

from __future__ import annotations

from typing import Literal

from dml_runner.schema.base import Count, Fraction, Section


class Gpt(Section):
    """A decoder-only transformer language model (GPT-2: pre-norm, learned positions, GELU, tied embeddings)."""

    name: Literal["gpt"]
    """The model family."""
    layers: Count
    """Transformer blocks."""
    hidden: Count
    """Width of the residual stream; a multiple of ``heads``."""
    heads: Count
    """Attention heads of a block."""
    ffn_hidden: Count | None
    """Width inside the MLP of a block; null: 4 x ``hidden``."""
    vocab_size: Count | None
    """Token ids the embedding knows; null: as many as the data has."""
    context: Count
    """Longest sequence, in tokens."""
    dropout: Fraction
    """Probability of zeroing an activation, while training."""


Model = Gpt
