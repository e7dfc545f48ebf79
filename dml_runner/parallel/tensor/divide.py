"""Divide a model over the ranks of the tensor axis, by its plan: no code knows a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dml_runner.comm.links import Links
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import TensorPlan
from dml_runner.parallel.held import Held, rows
from dml_runner.parallel.tensor.region import Region, Text, hold_parts
from dml_runner.parallel.tensor.vocabulary import DividedVocabulary, divide_embedding
from dml_runner.tensor_rules import part_of, pattern_of


@dataclass(frozen=True)
class Divided:
    """What a rank holds of a model that is divided.

    Attributes:
        held: the parameters it holds a part of; every other is whole on every rank.
        partial: whole parameters of whose gradient a rank has only what its own heads or its part of the texts add: the ranks' must be
            summed (``shared.add_up``). Other whole parameters' gradients are whole, and the same on every rank.
    """

    held: Mapping[str, Held]
    partial: frozenset[str]


def divide(model: nn.Module, plan: TensorPlan, links: Links, sequence_parallel: bool = False, blocks: int | None = None) -> Divided:
    """Let each rank of ``links`` hold and compute its share of what ``plan`` names.

    Parameters keep their names, and modules their attributes: the sizes those tell are the whole's. On the meta device there
    is nothing to copy; elsewhere the parts keep the values of the whole.

    Args:
        model: any ``Model``; blocks that are on other ranks of a pipeline may be missing.
        plan: the model's ``tensor_plan()``, which ``tensor_rules.refusals`` finds nothing against.
        links: the ranks of the tensor axis.
        sequence_parallel: whether between a row layer and the next column layer each rank holds a part of every text only.
        blocks: how many blocks the whole model has; None: as many as are here.

    Raises:
        ConfigError: tokens are to be divided, and the model has no ``scores``.
    """
    held = {}
    for name, parameter in list(model.named_parameters()):
        shape = tuple(parameter.shape)
        part = part_of(plan, name, shape, links.rank, links.size)
        if part is not None:
            held[name] = rows(shape, part.runs, part.dimension)
            _shrink(model, name, parameter, part.shape(shape), held[name])
    _divide_tokens(model, plan, links, held)
    text = Text()
    regions = _divide_layers(model, plan, links, text)
    inside = regions
    if sequence_parallel and regions:
        count = len(model.get_submodule("blocks")._modules) if blocks is None else blocks
        for number, block in model.get_submodule("blocks").named_children():
            hold_parts(block, links, text, first=number == "0", last=number == str(count - 1))
        inside = ["blocks"]
    return Divided(held, frozenset(_partial(model, plan, held, inside, sequence_parallel)))


def _shrink(model: nn.Module, name: str, parameter: nn.Parameter, shape: tuple[int, ...], held: Held) -> None:
    owner, _, leaf = name.rpartition(".")
    part = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
    if not parameter.is_meta:
        held.fill(part, parameter.detach())
    setattr(model.get_submodule(owner), leaf, nn.Parameter(part, requires_grad=parameter.requires_grad))


def _divide_tokens(model: nn.Module, plan: TensorPlan, links: Links, held: Mapping[str, Held]) -> None:
    named = dict(model.named_modules())
    for module in (named[name] for name in plan.vocabulary if name in named):
        if isinstance(module, nn.Embedding):
            divide_embedding(module, links)
    tokens = [whole.shape[0] for name, whole in held.items() if name.rpartition(".")[0] in plan.vocabulary]
    if tokens:
        scores = getattr(model, "scores", None)
        if scores is None:
            what = "its tokens are divided over ranks, but it has no `scores` (models.parts.scores.Scores) that could be"
            raise ConfigError(Problem("model", what, got=type(model).__name__))
        scores.division = DividedVocabulary(tokens[-1], links)


def _divide_layers(model: nn.Module, plan: TensorPlan, links: Links, text: Text) -> list[str]:
    """Names of the modules that became regions."""
    columns: dict[str, list[str]] = defaultdict(list)
    rows: dict[str, list[str]] = defaultdict(list)
    for name, _ in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        if pattern_of(name) in plan.column:
            columns[parent].append(leaf)
        elif pattern_of(name) in plan.row:
            rows[parent].append(leaf)
    for parent, leaves in columns.items():
        Region(model.get_submodule(parent), leaves, rows[parent], links, text)
    return list(columns)


def _partial(model: nn.Module, plan: TensorPlan, held: Mapping[str, Held], inside: list[str], in_parts: bool) -> Iterable[str]:
    """Whole parameters within the modules ``inside``; a row layer's bias is added outside, where only ``in_parts`` a rank lacks some."""
    for name, _ in model.named_parameters():
        if name not in held and any(name.startswith(f"{module}.") for module in inside):
            module, _, _ = name.rpartition(".")
            if in_parts or pattern_of(module) not in plan.row:
                yield name
