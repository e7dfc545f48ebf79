"""A plugin of ``dml bench straggler``: two layers over the pixels of an image, in a worker that sleeps in place of computing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dml_runner.schema.base import Count, Fraction, NotNegative
from dml_runner.schema.model import ModelWords

if TYPE_CHECKING:
    from dml_runner.facts import DataFacts
    from dml_runner.models.base import Model


class Sleeper(ModelWords):
    """Two layers, and sleep in every forward of training."""

    name: Literal["sleeper"]
    """The model."""
    width: Count = 64
    """Width of the layer between."""
    base_ms: NotNegative = 20.0
    """Milliseconds of every forward."""
    chance: Fraction = 0.3
    """How often a straggler sleeps longer."""
    least_ms: NotNegative = 20.0
    """Milliseconds it sleeps longer at least."""
    most_ms: NotNegative = 100.0
    """And at most."""
    who: Literal["one", "any"] = "one"
    """Rank 0 is the straggler, or each worker is now and then."""
    objective = property(lambda self: "classify")
    reads = property(lambda self: "images")


def build(words: Sleeper, data: DataFacts) -> Model:
    """The model on whatever device is the present one."""
    import os
    import random
    import time
    from collections.abc import Sequence
    from math import prod

    import torch
    from torch import Tensor, nn

    from dml_runner.facts import TensorPlan
    from dml_runner.models.base import Batch, Guess, Model
    from dml_runner.models.parts.classifier import guess_labels, label_loss

    rank = int(os.environ.get("RANK", "0"))
    slow = words.who == "any" or rank == 0
    drawn = random.Random(rank)

    class Net(Model):
        """The two layers."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(prod(data.image), words.width)
            self.blocks = nn.ModuleList()
            self.last = nn.Linear(words.width, data.classes)

        def embed(self, batch: Batch) -> Tensor:
            """Sleep, and the layer between."""
            if self.training:
                longer = drawn.uniform(words.least_ms, words.most_ms) if slow and drawn.random() < words.chance else 0.0
                time.sleep((words.base_ms + longer) / 1000)
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
            return {"images": torch.zeros(samples, *data.image), "targets": torch.zeros(samples, dtype=torch.int64)}

        def tensor_plan(self) -> TensorPlan:
            """Nothing of it is worth dividing."""
            return TensorPlan()

        def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
            """Zero, and N(0, 1/width)."""
            if parameter.dim() == 1:
                parameter.zero_()
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)

    return Net()
