"""Engines execute a Layout. Which one does is computed: the first that misses nothing the layout asks for."""

from __future__ import annotations

from dataclasses import replace

from dml_runner.engines import torch_engine
from dml_runner.errors import PlanError, raise_all
from dml_runner.layout import Layout


def choose(layout: Layout) -> Layout:
    """``layout`` with ``engine: auto`` decided.

    Raises:
        PlanError: the engine cannot do what the layout asks; each thing is named.
    """
    raise_all(torch_engine.missing(layout), PlanError)
    return replace(layout, engine="torch")
