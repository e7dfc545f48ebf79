"""Regions: which tensors of a running model a tensor split would divide, told from its ``TensorPlan``."""

from __future__ import annotations

from typing import Any, Literal, Self

from torch import Tensor, nn

from dml_runner.facts import TensorPlan
from dml_runner.models.base import Model
from dml_runner.tensor_rules import pattern_of

Part = Literal["column", "row", "vocabulary"]


def _part_of(plan: TensorPlan, module: str) -> Part | None:
    """How ``plan`` divides the module of this name; None: it does not."""
    name = pattern_of(module)
    return "column" if name in plan.column else "row" if name in plan.row else "vocabulary" if name in plan.vocabulary else None


class Regions:
    """Follows a forward from module to module: what is made from a column layer's output on, up to a row layer's input, is divided.

    So is what has a dimension as long as the vocabulary, outside of blocks, and a divided weight in another type. In backward, where no
    module tells, what is as large as something divided in forward is divided, unless something whole was as large.

    Args:
        model: the whole.
        piece: the part of it that runs.
    """

    def __init__(self, model: Model, piece: nn.Module) -> None:
        plan = model.tensor_plan()
        inside = set() if piece is not model else {id(module) for block in model.blocks for module in block.modules()}
        own = {id(module) for module in piece.modules()} - inside
        self._layers = [(module, part) for name, module in model.named_modules() if id(module) in own and (part := _part_of(plan, name))]
        tensors = [(p, part) for module, part in self._layers for p in module.parameters(recurse=False)]
        self._weights = {p.untyped_storage()._cdata: part != "row" or p.dim() > 1 for p, part in tensors}
        self._vocabulary = {len(p) for p, part in tensors if part == "vocabulary"}
        self._within: tuple[int, ...] | bool = False
        self._forward = True
        self._numbers: tuple[set[int], set[int]] = (set(), {p.numel() for p, part in tensors if part != "row" or p.dim() > 1})
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for module, part in self._layers:
            if part != "vocabulary":
                self._hooks.append(module.register_forward_pre_hook(self._enters))
                self._hooks.append(module.register_forward_hook(self._leaves_column if part == "column" else self._leaves_row))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._forward = False

    def divide(self, tensor: Tensor, source: Tensor | None) -> bool:
        """Whether a tensor split divides ``tensor``, which was just made, as a copy of ``source`` if there is one."""
        shape = tuple(tensor.shape)
        if not self._forward:
            return tensor.numel() in self._numbers[True] - self._numbers[False]
        weight = None if source is None else self._weights.get(source.untyped_storage()._cdata)
        found = weight if weight is not None else not self._vocabulary.isdisjoint(shape) or self._is_within(shape)
        self._numbers[found].add(tensor.numel())
        return found

    def _is_within(self, shape: tuple[int, ...]) -> bool:
        if isinstance(self._within, bool):
            return self._within
        return shape[-1:] == self._within

    def _enters(self, module: nn.Module, _: Any) -> None:
        """In a column layer its output is divided, in a row layer its input."""
        rows, columns = tuple(module.weight.shape)  # type: ignore[arg-type]
        self._within = (columns,) if (module, "row") in self._layers else (rows,)

    def _leaves_column(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._within = True

    def _leaves_row(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._within = False
