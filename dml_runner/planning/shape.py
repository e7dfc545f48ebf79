"""ModelFacts: a model's parameters, measured on the meta device, and what its pieces compute and hold."""

from __future__ import annotations

import torch

from dml_runner import models
from dml_runner.facts import DataFacts, ModelFacts, TensorFact
from dml_runner.layout import Layout
from dml_runner.planning.pieces import measure_pieces
from dml_runner.run import Run


def measure(run: Run, data: DataFacts, layout: Layout | None = None) -> ModelFacts:
    """Build the model without memory and read off what it consists of.

    With a ``layout`` its pieces are measured too, in the layout's precision and as on its device: that runs a piece of each kind on
    tensors without memory, forward and backward, and takes a second or two. Without, it is a matter of milliseconds.

    Raises:
        ConfigError: the model cannot hold what the data brings.
    """
    with torch.device("meta"):
        model = models.build(run.model, data)
    tensors = tuple(TensorFact(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters())
    head, blocks, undivided, plan = model.head_parameters(), len(model.blocks), model.undivided, model.tensor_plan()
    pieces = () if layout is None else measure_pieces(model, data.seq_len, layout.precision == "bf16", layout.device == "cuda")
    return ModelFacts(tensors, head, blocks, undivided, plan, pieces)


def needs_pieces(layout: Layout) -> bool:
    """Whether ``layout`` cannot be closed, or what its ranks hold not be told, without measured pieces."""
    return layout.recompute.kept == "open" or layout.stages is not None
