"""A model's weights from a committed step, without what its optimizer remembers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dml_runner.checkpoint.read import Committed
from dml_runner.errors import ConfigError, Problem


def fill(tensors: Mapping[str, Tensor], step: Committed) -> None:
    """Copy the step's values into ``tensors``, a model's ``state_dict()``.

    Raises:
        ConfigError: the step lacks one of them, or has it in another shape.
    """
    with torch.no_grad():
        for name, tensor in tensors.items():
            saved = step.read(f"model/{name}")
            if saved.shape != tensor.shape:
                what = f"step {step.step}: {name} has another shape than the model"
                raise ConfigError(Problem("run", what, got=str(list(saved.shape)), allowed=str(list(tensor.shape))))
            tensor.copy_(saved)
