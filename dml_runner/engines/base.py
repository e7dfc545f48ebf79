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


class Weigh(Protocol):
    """Gives the weight of a whole step's batch, and with it the word of all ranks that they take the step."""

    @property
    def known(self) -> float | None:
        """The weight, where it is known before the others are heard: then what can still be undone may be done before."""

    @property
    def wish(self) -> int:
        """What this rank tells the others, from 0 (go on) to 3; the highest counts. An engine may carry it to them itself."""

    def ask(self) -> None:
        """Begin to tell the others and to hear them, where no engine carries it; a call does so too."""

    def hear(self, highest: int) -> None:
        """Take the highest wish of all, which an engine carried; what this raises ends the run here."""

    def __call__(self) -> float:
        """Wait for the other ranks; what this raises ends the run here."""


@dataclass(frozen=True)
class Weighed:
    """The weight of a batch that no other rank has a word in.

    Attributes:
        known: the weight.
    """

    known: float
    wish: int = 0

    def ask(self) -> None:
        """Nobody is asked."""

    def hear(self, highest: int) -> None:
        """Nobody wishes anything."""

    def __call__(self) -> float:
        """The weight, at once."""
        return self.known


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

        ``weight`` is called once, before anything has changed that a checkpoint keeps.

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

    def times(self) -> tuple[Tensor, float]:
        """(start and end of every action of the schedule in the last step, (actions, 2), fp64; when this rank was ready to begin it).

        In seconds of this host's monotonic clock. Empty, and 0, where there is no schedule or no step was done.
        """

    def fingerprint(self) -> tuple[list[str], Tensor]:
        """(names of all parameters of the model, one number each), equal on ranks that hold the same part where their weights are equal.

        What a rank does not hold is 0, so that all ranks tell as many numbers.
        """

    def close(self) -> None:
        """Free what the engine holds."""
