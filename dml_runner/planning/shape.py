"""ModelFacts: a model's parameters, measured on the meta device."""

from __future__ import annotations

import torch

from dml_runner import models
from dml_runner.facts import DataFacts, ModelFacts, TensorFact
from dml_runner.run import Run


def measure(run: Run, data: DataFacts) -> ModelFacts:
    """Build the model without memory and read off what it consists of.

    Raises:
        ConfigError: the model cannot hold what the data brings.
    """
    with torch.device("meta"):
        model = models.build(run.model, data)
    tensors = tuple(TensorFact(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters())
    return ModelFacts(tensors, model.head_parameters())
