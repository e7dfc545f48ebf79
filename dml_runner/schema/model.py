"""Which model is trained, and its shape."""

from __future__ import annotations

from typing import Literal

from dml_runner.schema.base import Count, Fraction, Positive, Section


class Gpt(Section):
    """A decoder-only transformer language model, in GPT-2's shape or, by ``kv_heads`` to ``tied``, in that of Llama."""

    name: Literal["gpt"]
    """The model family."""
    layers: Count
    """Transformer blocks."""
    hidden: Count
    """Width of the residual stream; a multiple of ``heads``."""
    heads: Count
    """Attention heads of a block."""
    kv_heads: Count | None
    """Heads of keys and values, each shared by ``heads`` / ``kv_heads`` heads; a divisor of ``heads``; null: ``heads``."""
    ffn_hidden: Count | None
    """Width inside the MLP of a block; null: 4 x ``hidden``."""
    vocab_size: Count | None
    """Token ids the embedding knows; null: as many as the data has."""
    context: Count
    """Longest sequence, in tokens."""
    dropout: Fraction
    """Probability of zeroing an activation, while training."""
    norm: Literal["layer", "rms"]
    """Normalisation before each half of a block: layer norm, or RMS norm, which leaves the mean alone."""
    mlp: Literal["gelu", "swiglu"]
    """The MLP of a block: two matrices around GELU, or three, one of which gates another (SwiGLU)."""
    positions: Literal["learned", "rotary"]
    """Where a token stands: a learned vector added to its embedding, or a rotation of queries and keys."""
    rope_theta: Positive
    """Base of the wavelengths of rotary positions; the longest is about 2 pi x this many tokens."""
    bias: bool
    """Whether linear layers and layer norms add a bias."""
    tied: bool
    """Whether the output projection is the token embedding, or a matrix of its own."""


Model = Gpt
