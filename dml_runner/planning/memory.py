"""Bytes that a rank holds: weights, gradients and optimizer state. Activations are not counted yet."""

from __future__ import annotations

from dml_runner.facts import ModelFacts
from dml_runner.schema.optimizer import AdamW, Optimizer

FP32 = 4


def state_bytes(model: ModelFacts, optimizer: Optimizer) -> dict[str, int]:
    """Bytes by kind on a rank that holds the whole model in fp32 (mixed precision keeps fp32 weights too)."""
    trained = FP32 * sum(t.size for t in model.tensors if t.trained)
    return {"weights": FP32 * sum(t.size for t in model.tensors), "gradients": trained, "optimizer": trained * _moments(optimizer)}


def _moments(optimizer: Optimizer) -> int:
    if isinstance(optimizer, AdamW):
        return 2
    return 1 if optimizer.momentum else 0
