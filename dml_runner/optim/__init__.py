"""Optimizers, learning-rate schedules, the batch rule and clipping. ``name: adamw`` means optim/adamw.py."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import torch
from torch import nn

from dml_runner.schema.optimizer import Optimizer as OptimizerWords


def build(words: OptimizerWords, parameters: Iterable[tuple[nn.Parameter, int, bool]]) -> torch.optim.Optimizer:
    """The optimizer that ``words`` describe; vectors are not decayed.

    Args:
        parameters: each with its distance from the model's head, in blocks, and whether it is, or is a part of, more than a vector.
            Those that are not trained are left out.

    Returns:
        An optimizer whose groups each carry ``share``: what the learning rate of the step is multiplied with.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter, distance, matrix in parameters:
        if parameter.requires_grad:
            groups.setdefault((matrix, words.layer_decay**distance), []).append(parameter)
    option = importlib.import_module(f"dml_runner.optim.{words.name}")
    optimizer: torch.optim.Optimizer = option.build(
        words,
        [
            {"params": found, "weight_decay": words.weight_decay if matrix else 0.0, "share": share}
            for (matrix, share), found in sorted(groups.items(), key=lambda group: group[0], reverse=True)
        ],
    )
    return optimizer
