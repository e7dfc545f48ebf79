"""What every model family offers, and how its weights start."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import TensorPlan
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.parallel.held import Held

Batch = Mapping[str, Tensor]
"""What a model sees and should find; the first dimension of every tensor is the sample.

Texts: ``inputs`` (batch, length), int64; ``characters`` (batch, length, word_length) instead where a model reads characters;
``mask`` (batch, length), bool, false at padding, where there is any. Images: ``images`` (batch, channels, height, width), fp32.
Targets: ``targets`` (batch, length), -100 where nothing is predicted, and for both directions ``before`` alike; or, of a classifier,
``targets`` (batch,). Streams: ``first`` (batch,), bool, true where a stream begins, and ``state`` (batch, *state_shape).
"""


class Guess(NamedTuple):
    """What a model took its samples for, and what they were: two int64 tensors of one dimension, equally long."""

    predicted: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Foreign:
    """Where a parameter stands in a published file of weights.

    Attributes:
        names: tensors of that file which, put together along the first dimension, are the parameter.
        rows: how many rows of the parameter each of them holds; empty: there is one.
        transposed: whether the file holds a matrix with its dimensions exchanged.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False


@dataclass(frozen=True)
class Publication:
    """How a model is written in Hugging Face's form.

    Attributes:
        config: config.json.
        tensors: each name of ``Model.state_dict``, once and without tied ones, with its place in the file of weights.
        head: names, of ours, of the head's own tensors: what a file of weights for another task lacks.
        prefix: what the names in a file may begin with, or lack (``bert.``).
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Foreign]
    head: frozenset[str] = frozenset()
    prefix: str = ""


class Model(nn.Module):
    """A module trained by the runner: it maps a batch to an output, and an output to a loss.

    Attributes:
        blocks: the repeated pieces in their order, each called as ``block(x, batch)``; what one returns the next one takes.
        undivided: why ``embed``, single ``blocks`` and ``finish`` cannot be called by themselves; None: they can.
    """

    blocks: nn.ModuleList
    undivided: str | None = None

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Any:
        """The output for a batch: ``embed``, then each of the ``blocks``, then ``finish``.

        A model that writes may keep in the ``cache`` what it has read; one that keeps nothing, as here, is given the whole text each time.
        """
        return self.finish(self.through(self.embed(batch), batch), batch)

    def through(self, x: Tensor, batch: Batch, blocks: range | None = None) -> Tensor:
        """``x`` after the ``blocks`` of these numbers; None: after all of them. Some may be on other ranks, and missing here."""
        for block in self.blocks if blocks is None else (self.blocks.get_submodule(str(number)) for number in blocks):
            x = block(x, batch)
        return x

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """What the first block takes; the first dimension is the sample."""

    @abstractmethod
    def finish(self, x: Tensor, batch: Batch) -> Any:
        """The output, from what the last block returned."""

    @abstractmethod
    def stem(self) -> Sequence[nn.Module]:
        """The modules that ``embed`` uses."""

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of the loss over what is predicted, how much was predicted), both scalars."""

    @abstractmethod
    def guess(self, output: Any, batch: Batch) -> Guess:
        """What the model took each thing that is predicted for, and what it was."""

    @abstractmethod
    def example(self, samples: int) -> dict[str, Tensor]:
        """A batch of ``samples`` of the smallest legal shape, on torch's default device."""

    @abstractmethod
    def tensor_plan(self) -> TensorPlan:
        """How its modules may be divided over ranks."""

    def scores_of(self, output: Any) -> Tensor:
        """(batch, length, vocabulary) of a language model's output, of which the next token is drawn."""
        scores: Tensor = output
        return scores

    @abstractmethod
    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill one parameter in place with its starting values."""

    def initialise_buffers(self) -> None:
        """Fill the buffers in place; called after the model got its memory."""

    def head_parameters(self) -> int:
        """Elements that the head adds to the published count."""
        return 0

    def publication(self) -> Publication | None:
        """How the model is written in Hugging Face's form; None: transformers has no such model."""
        return None

    def state_shape(self) -> tuple[int, ...] | None:
        """Shape of what a stream hands from one step to the next; None: nothing."""
        return None

    def state_of(self, output: Any) -> Tensor:
        """(batch, *state_shape) of an output, detached: what the streams hand on."""
        raise NotImplementedError


def initialise(model: Model, seed: int, held: Mapping[str, Held] | None = None) -> None:
    """Give every parameter its starting values, whatever the layout: keyed by (seed, name), drawn on the CPU.

    Args:
        model: with memory.
        seed: of the job.
        held: what of each parameter ``model`` has, where a rank holds a part of it; None: it has all.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.empty(parameter.shape if held is None else held[name].shape, dtype=parameter.dtype)
            model.initialise_parameter(name, values, keyed_generator(seed, name))
            if held is None:
                parameter.copy_(values)
            else:
                held[name].fill(parameter, values)
        model.initialise_buffers()


def freeze(model: Model, blocks: int | None) -> None:
    """Keep the weights of the stem and of the first ``blocks`` blocks as they are; None: train everything.

    Raises:
        ConfigError: there are fewer blocks.
    """
    if blocks is None:
        return
    if blocks > len(model.blocks):
        raise ConfigError(Problem("model.frozen", "more blocks than the model has", got=str(blocks), allowed=f"0 to {len(model.blocks)}"))
    for module in (*model.stem(), *model.blocks[:blocks]):
        module.requires_grad_(False)


def distances(model: Model) -> Iterator[tuple[nn.Parameter, int, bool]]:
    """Every parameter, its distance from the head (0 behind the last block, 1 in it, one more for the stem than for the first), and
    whether it is more than a vector."""
    found = {id(p): len(model.blocks) + 1 for module in model.stem() for p in module.parameters()}
    for number, block in enumerate(model.blocks):
        found |= {id(p): len(model.blocks) - number for p in block.parameters()}
    for parameter in model.parameters():
        yield parameter, found.get(id(parameter), 0), parameter.dim() >= 2


def keyed_generator(*key: Any) -> torch.Generator:
    """A CPU generator whose stream depends on ``key`` alone."""
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number & (2**63 - 1))
