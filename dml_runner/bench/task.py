"""What every loop trains in ``dml bench loop``: a tiny classifier on samples held in memory, in one order, with one optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dml_runner import optim
from dml_runner.data.parts.order import SampleOrder, permutation
from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Guess, Model, initialise
from dml_runner.models.parts.classifier import guess_labels
from dml_runner.run import Run

WIDTH = 64
CLASSES = 10
SAMPLES = 4096
BATCH = 32
WARM_UP = 50
"""Updates of each turn before the clock starts."""
LOG_EVERY = 10


class Mlp(Model):
    """Three linear layers of 64; ``inputs`` (batch, 64) to the logits of 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
        self.blocks = nn.ModuleList()
        self._counted = torch.tensor(BATCH)

    def embed(self, batch: Batch) -> Tensor:
        """``inputs`` (batch, 64) -> logits (batch, 10)."""
        logits: Tensor = self.layers(batch["inputs"])
        return logits

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        """The logits."""
        return x

    def stem(self) -> Sequence[nn.Module]:
        """All of it."""
        return [self.layers]

    def guess(self, output: Tensor, batch: Batch) -> Guess:
        """The likeliest classes."""
        return guess_labels(output, batch["targets"])

    def tensor_plan(self) -> TensorPlan:
        """Nothing of it is worth dividing."""
        return TensorPlan()

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy summed over the samples, and their number: every batch here is whole."""
        return cross_entropy(output, batch["targets"], reduction="sum"), self._counted

    def example(self, samples: int) -> dict[str, Tensor]:
        """Zeros of class 0."""
        return {"inputs": torch.zeros(samples, WIDTH), "targets": torch.zeros(samples, dtype=torch.int64)}

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """N(0, 1/64) everywhere."""
        parameter.normal_(0.0, WIDTH**-0.5, generator=generator)


class Clock:
    """Times the updates of one turn. It stands in the source of batches, the one place that every loop comes by once an update."""

    def __init__(self, steps: int, warm_up: int = WARM_UP) -> None:
        """``steps`` updates are timed, after ``warm_up`` others."""
        self.needed = warm_up + steps + 1
        """Batches a loop must ask for: the last one is asked for when the last timed update is over."""
        self._warm_up, self._steps = warm_up, steps
        self._asked = 0
        self._started = self._ended = 0.0

    def tick(self) -> None:
        """A loop asks for its next batch."""
        self._asked += 1
        if self._asked == self._warm_up + 1:
            self._started = time.perf_counter()
        elif self._asked == self.needed:
            self._ended = time.perf_counter()

    @property
    def step_us(self) -> float:
        """Microseconds an update took, on average over the timed ones."""
        return (self._ended - self._started) / self._steps * 1e6


class Samples:
    """Samples in memory, and a clock that hears of every batch."""

    facts = DataFacts("tokens", SAMPLES, BATCH, 1, 1, CLASSES, WIDTH, {}, "")

    def __init__(self, clock: Clock) -> None:
        generator = torch.Generator().manual_seed(1)
        self._inputs = torch.randn(SAMPLES, WIDTH, generator=generator)
        self._targets = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        self._clock = clock

    def order(self, seed: int) -> SampleOrder:
        """Shuffled."""
        return SampleOrder(SAMPLES, seed)

    def train_batch(self, picks: np.ndarray) -> dict[str, Tensor]:
        """The samples ``picks``."""
        self._clock.tick()
        chosen = torch.from_numpy(picks[:, 0])
        return {"inputs": self._inputs[chosen], "targets": self._targets[chosen]}

    def eval_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The samples ``indices``, off the clock."""
        chosen = torch.from_numpy(indices)
        return {"inputs": self._inputs[chosen], "targets": self._targets[chosen]}

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, targets) of every update a loop needs, in the runner's own order."""
        each = SAMPLES // BATCH
        for number in range(self._clock.needed):
            if number % each == 0:
                epoch = torch.from_numpy(permutation(SAMPLES, seed, number // each))
            self._clock.tick()
            start = number % each * BATCH
            chosen = epoch[start : start + BATCH]
            yield self._inputs[chosen], self._targets[chosen]


@dataclass(frozen=True)
class Task:
    """One turn of a loop: the words it follows, and its batches.

    Attributes:
        run: model, optimizer, rhythm.
        samples: what it trains on.
        steps: updates it makes.
    """

    run: Run
    samples: Samples
    steps: int

    def model(self) -> Mlp:
        """The model at its start."""
        model = Mlp()
        initialise(model, self.run.seed)
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of every loop."""
        return optim.build(self.run.optimizer, ((p, 0, p.dim() >= 2) for p in model.parameters()))
