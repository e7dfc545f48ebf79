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
    from dml_runner.bench.straggler_net import Sleeping

    longer_ms = (words.least_ms, words.most_ms)
    return Sleeping(words.width, words.base_ms, longer_ms, words.chance, words.who == "any", data)
