"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch

from dml_runner.schema.optimizer import Sgd as SgdWords


def build(words: SgdWords, groups: list[dict[str, Any]]) -> torch.optim.SGD:
    """torch's fused SGD over ``groups``."""
    return torch.optim.SGD(groups, lr=words.lr, momentum=words.momentum, fused=True)
