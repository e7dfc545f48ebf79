"""The model that ``dml bench straggler`` trains: two layers over the pixels of an image, and sleep in every forward of training."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Guess, Model
from dml_runner.models.parts.classifier import guess_labels, label_loss


class Sleeping(Model):
    """The two layers; rank 0, or each rank, sleeps longer now and then."""

    def __init__(self, width: int, base_ms: float, longer_ms: tuple[float, float], chance: float, any_rank: bool, data: DataFacts) -> None:
        """``base_ms`` in each forward, and with ``chance`` ``longer_ms`` more (at least, at most): on rank 0, or on ``any_rank``."""
        super().__init__()
        rank = int(os.environ.get("RANK", "0"))
        self._image, self._base_ms, self._longer_ms = data.image, base_ms, longer_ms
        self._chance = chance if any_rank or rank == 0 else 0.0
        self._drawn = random.Random(rank)
        self.first = nn.Linear(prod(data.image), width)
        self.blocks = nn.ModuleList()
        self.last = nn.Linear(width, data.classes)

    def embed(self, batch: Batch) -> Tensor:
        """Sleep, and the layer between."""
        if self.training:
            longer = self._drawn.uniform(*self._longer_ms) if self._drawn.random() < self._chance else 0.0
            time.sleep((self._base_ms + longer) / 1000)
        return torch.relu(self.first(batch["images"].flatten(1)))

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        """The logits."""
        logits: Tensor = self.last(x)
        return logits

    def stem(self) -> Sequence[nn.Module]:
        """The first layer."""
        return [self.first]

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy."""
        return label_loss(output, batch["targets"])

    def guess(self, output: Tensor, batch: Batch) -> Guess:
        """The likeliest classes."""
        return guess_labels(output, batch["targets"])

    def example(self, samples: int) -> dict[str, Tensor]:
        """Black images of class 0."""
        return {"images": torch.zeros(samples, *self._image), "targets": torch.zeros(samples, dtype=torch.int64)}

    def tensor_plan(self) -> TensorPlan:
        """Nothing of it is worth dividing."""
        return TensorPlan()

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Zero, and N(0, 1/width)."""
        if parameter.dim() == 1:
            parameter.zero_()
        else:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
