"""Optimizers, learning-rate schedules, the batch rule and clipping. ``name: adamw`` means optim/adamw.py."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import torch
from torch import nn

from dml_runner.schema.optimizer import Optimizer as OptimizerWords


def build(words: OptimizerWords, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that ``words`` describe, over every parameter; vectors are not decayed."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": words.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer = importlib.import_module(f"dml_runner.optim.{words.name}").build(
        words, [g for g in groups if g["params"]]
    )
    return optimizer
