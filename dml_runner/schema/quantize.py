"""In how few bits numbers travel and rest."""

from __future__ import annotations

from typing import Literal

from dml_runner.schema.base import Count, Section

Wire = Literal["none", "fp16", "bf16", "int8", "onebit", "powersgd"]


class Quantize(Section):
    """Fewer bits where they are enough."""

    name: Literal["none"]
    """The set of words."""
    gradients: Wire
    """Form of gradients between ranks: as computed, in 2 bytes, in 1 byte or 1 bit a value with scales, or as two thin matrices."""
    rank: Count
    """Rank of the matrices that ``gradients=powersgd`` sends in place of a gradient."""
