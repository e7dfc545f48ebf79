"""Stages: which parts of a model a pipeline rank keeps, and what its first and its last stage both use.

Found from the model itself: it is run once without memory (on the meta device), and every parameter or buffer that an operation reads is
noted. So no family says anything about stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dml_runner.errors import ConfigError, Problem


@dataclass(frozen=True)
class Users:
    """Who uses the parameters and buffers of a model, each by the first name it has there.

    Attributes:
        stem: used by what stands before the first block.
        blocks: used by each block.
        head: used behind the last block, and what nobody uses.
    """

    stem: frozenset[str]
    blocks: tuple[frozenset[str], ...]
    head: frozenset[str]

    @property
    def shared(self) -> frozenset[str]:
        """Used by both ends: tied embeddings. Where those are on two ranks, both hold it, and one of them saves it."""
        return self.stem & self.head


def users(model: Any) -> Users:
    """Who uses what of a meta-built, whole ``Model``.

    Raises:
        ConfigError: it only runs as a whole, or its blocks share a parameter with each other or with an end of the model.
    """
    if model.undivided is not None:
        raise ConfigError(Problem("model", model.undivided, hint="a strategy that does not cut it"))
    names = {id(tensor): name for name, tensor in _tensors(model)}
    inside = [{id(tensor) for _, tensor in _tensors(block)} for block in model.blocks]
    embedding, passing, finishing = _read(model)
    stem = {id(tensor) for module in model.stem() for _, tensor in _tensors(module)} | embedding
    others = set(names).difference(stem, *inside)
    head = (finishing & set(names)) | others
    several = [key for key in names if sum(key in block for block in inside) + (key in stem or key in head) > 1]
    loose = passing.intersection(names).difference(*inside)
    trained = sorted(names[key] for key in {*several, *loose} if names[key] in dict(model.named_parameters()))
    if trained:
        raise ConfigError(Problem("model", "its blocks share parameters, so it cannot be cut between them", got=", ".join(trained)))
    named = [frozenset(names[key] for key in found if key in names) for found in (stem | loose, head | loose, *(b | loose for b in inside))]
    return Users(named[0], tuple(named[2:]), named[1])


def keep(model: Any, found: Users, blocks: Sequence[range], first: bool, last: bool) -> None:
    """Strip a meta-built, whole ``Model`` in place to what a pipeline rank needs. Names stay as they are.

    What goes is no longer listed (``modules``, ``named_parameters``, ``state_dict``) and gets no memory, but stays readable as an
    attribute on the meta device, so that questions to the model (``example``, ``publication``) are answered as before.

    Args:
        model: to be stripped.
        found: its ``users``.
        blocks: the blocks of each of its virtual stages.
        first: whether it embeds.
        last: whether it finishes.
    """
    needed = set().union(*(found.blocks[number] for stage in blocks for number in stage))
    needed |= (found.stem if first else set()) | (found.head if last else set())
    kept = {id(tensor) for name, tensor in _tensors(model) if name in needed}
    mine = {str(number) for stage in blocks for number in stage}
    for name in [name for name in model.blocks._modules if name not in mine]:
        _hide(model.blocks, model.blocks._modules, name)
    _strip(model, kept)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _strip(module: nn.Module, kept: set[int]) -> None:
    """Hide all tensors below ``module`` that are not ``kept``, and modules that held nothing else."""
    for registry in (module._parameters, module._buffers):
        for name in [name for name, tensor in registry.items() if tensor is not None and id(tensor) not in kept]:
            _hide(module, registry, name)
    for name, child in list(module.named_children()):
        held = {id(tensor) for _, tensor in _tensors(child)}
        if held and not held & kept:
            _hide(module, module._modules, name)
        else:
            _strip(child, kept)


def _hide(module: nn.Module, registry: dict[str, Any], name: str) -> None:
    """Leave an entry of ``module`` a plain attribute."""
    module.__dict__[name] = registry.pop(name)


# --- who reads what ------------------------------------------------------------------------------------------------------


class _Reads(TorchDispatchMode):
    """Notes which tensors operations read. Where the number of chosen elements depends on values, which are not there, all are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch would import its compiler, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        packet, kwargs = func.overloadpacket, kwargs or {}
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("meta")}
        if packet is torch.ops.aten.nonzero:
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if packet is torch.ops.aten.masked_select:
            return args[0].new_empty(args[0].numel())
        if packet is torch.ops.aten.index:
            places = [_all_of(index) for index in args[1]]
            return func(args[0], list(chain.from_iterable(places)))
        return func(*args, **kwargs)


def _all_of(index: Tensor | None) -> list[Tensor | None]:
    """An index as numbers: of a mask, those of all its elements."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return [index.new_empty(index.numel(), dtype=torch.int64) for _ in range(index.dim())]


def _read(model: Any) -> tuple[set[int], set[int], set[int]]:
    """The identities of what ``embed``, the blocks and the head read, found in one evaluation without memory."""
    training = model.training
    model.eval()
    modes = [_Reads() for _ in range(3)]
    try:
        with torch.device("meta"):
            batch = model.example(2)
        with torch.no_grad():  # outside the device's own mode, in which torch imports its compiler
            with modes[0]:
                x = model.embed(batch)
            with modes[1]:
                x = model.through(x, batch)
            with modes[2]:
                model.loss(model.finish(x, batch), batch)
    finally:
        model.train(training)
    return modes[0].found, modes[1].found, modes[2].found
