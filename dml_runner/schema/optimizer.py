"""How gradients become updates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Fraction, NotNegative, Positive, Section


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""

    name: Literal["adamw"]
    """The optimizer."""
    lr: Positive
    """Learning rate after warm-up, before the batch rule."""
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    """What the rate is multiplied with for each block that stands between a weight and the model's head; 1: all learn alike."""
    weight_decay: NotNegative
    """Decay of matrices, a share of ``lr`` a step; vectors (biases, norms) are not decayed."""
    beta1: Fraction
    """Decay of the running mean of gradients."""
    beta2: Fraction
    """Decay of the running mean of squared gradients."""
    eps: Positive
    """Added to the denominator."""


class Sgd(Section):
    """Stochastic gradient descent, with momentum if asked."""

    name: Literal["sgd"]
    """The optimizer."""
    lr: Positive
    """Learning rate after warm-up, before the batch rule."""
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    """What the rate is multiplied with for each block that stands between a weight and the model's head; 1: all learn alike."""
    weight_decay: NotNegative
    """L2 penalty on matrices; vectors (biases, norms) are not decayed."""
    momentum: Fraction
    """Share of the last update that is kept; 0: none."""


Optimizer = Annotated[AdamW | Sgd, Field(discriminator="name")]
