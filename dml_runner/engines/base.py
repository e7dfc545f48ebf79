"""The face of an engine: it executes a Layout, and a loop drives it without knowing which one it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed
from dml_runner.models.base import Batch, Guess
from dml_runner.models.parts.cache import KeyValueCache

Weigh = Callable[[], float]
"""Gives the weight of a whole step's batch."""


@dataclass(frozen=True)
class StepReport:
    """What one update was like on this rank.

    Attributes:
        loss_sum: this rank's summed loss, before the update (a scalar on the engine's device).
        grad_norm: gives the norm of the whole gradient before clipping; may wait for servers to tell it.
        forward_backward_s: computing, in seconds.
        comm_wait_s: waiting for gradients of other ranks after the last one of its own was handed over, in seconds.
        update_s: norm, clipping and optimizer, in seconds.
    """

    loss_sum: Tensor
    grad_norm: Callable[[], float]
    forward_backward_s: float
    comm_wait_s: float
    update_s: float


class Engine(Protocol):
    """Executes a Layout on one rank."""

    def step(self, number: int, batches: Sequence[Batch], weight: Weigh, rate: float) -> StepReport:
        """Update ``number``: this rank's micro-batches, the weight of the whole step's batch, the learning rate.

        ``weight`` waits for the other ranks, and may raise to end the run here: it is called once, before anything has changed.

        Raises:
            Diverged: the gradient is not finite; the weights are as they were.
        """

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Guess]:
        """(summed loss, weight, what was guessed) of a held-out batch, without gradients."""

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """The model's output for a batch, without gradients; with a cache (language models), of what continues it."""

    def state(self) -> Iterator[Piece]:
        """The part of weights and optimizer state that this rank writes to a checkpoint."""

    def restore(self, step: Committed) -> None:
        """Take weights and optimizer state from a verified checkpoint, whatever layout wrote it."""

    def load_weights(self, step: Committed) -> None:
        """Take the weights alone from a verified checkpoint, for an engine that only evaluates.

        Raises:
            ConfigError: they are of another model.
        """

    def fingerprint(self) -> tuple[list[str], Tensor]:
        """(parameter names, one number each) that is equal on ranks whose replicated weights are equal."""

    def close(self) -> None:
        """Free what the engine holds."""
