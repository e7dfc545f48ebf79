"""Which engine executes the layout."""

from __future__ import annotations

from typing import Literal

from dml_runner.schema.base import Section


class Engine(Section):
    """The engine that executes the layout."""

    name: Literal["auto", "torch"]
    """``auto`` takes the first engine that can do what the layout asks; ``torch`` is plain PyTorch."""
