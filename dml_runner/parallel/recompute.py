"""Computing again in backward what forward did not keep (Chen et al. 2016; Korthikanti et al. 2022), and keeping the rest in host memory.

torch's checkpoint runs a stretch of blocks twice, with the random numbers and the autocast of the first time, so gradients are the same
to the last bit. What stands here tells it which stretches, and what of them is kept all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial, wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from dml_runner.errors import Problem
from dml_runner.layout import Recomputed
from dml_runner.parallel.batch_norm import BatchNorm, Pass
from dml_runner.parallel.host_memory import InHostMemory, Waiting
from dml_runner.parallel.products import Giving, Keeping, Products, is_product

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


class Divisible(Protocol):
    """What is known of a model here.

    Attributes:
        undivided: why its blocks cannot be run in stretches; None: they can.
    """

    undivided: str | None

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated pieces in their order."""

    def through(self, x: Tensor, batch: Mapping[str, Tensor], blocks: range | None = None) -> Tensor:
        """``x`` after these blocks."""

    def modules(self) -> Iterable[nn.Module]:
        """All its modules."""


def refusals(how: Recomputed, undivided: str | None, blocks: int) -> list[Problem]:
    """Why a model cannot be recomputed so; empty: it can.

    Args:
        how: what is kept.
        undivided: the model's own reason why it runs as a whole.
        blocks: how many it has.
    """
    if how.kept == "none" and not how.offload:
        return []
    if undivided is not None and not blocks:
        return [Problem("recompute", f"{undivided}, and has no row of blocks", got="0 blocks", allowed="none", hint="recompute=none")]
    if undivided is not None and how.every > 1:
        return [Problem("recompute.every", f"{undivided}, so each block is recomputed by itself", got=str(how.every), allowed="1")]
    return []


def recompute(model: Divisible, how: Recomputed, device: torch.device) -> None:
    """Have ``model`` keep for backward what ``how`` says, wherever its blocks run with gradients; without, it runs as before.

    Stretches are counted from the first block that is run: on a rank with a stage, from the stage's. A model that runs as a whole has each
    of its blocks wrapped. What the stem and the head keep is not touched: backward begins with the one and ends with the other. On a CPU
    what is kept is in host memory already, and ``offload`` changes nothing.

    Args:
        model: changed in place, before it is compiled or replicated.
        how: what is kept, decided; see ``refusals`` for what it must not be.
        device: where the model computes.
    """
    assert how.kept != "open", "the plan decides what is kept"
    away = InHostMemory() if how.offload and device.type == "cuda" else None
    if how.kept == "none" and away is None:
        return
    assert not refusals(how, model.undivided, len(model.blocks)), "the plan refuses this"
    if model.undivided is None:
        setattr(model, "through", _Stretches(model, how, away).through)  # noqa: B010  # a method is no attribute, to mypy
        return
    for block in model.blocks:
        setattr(block, "forward", _twice_by_itself(block, _Twice(block.modules(), how, away)))  # noqa: B010


class _Stretches:
    """Runs blocks in stretches, in place of a model's ``through``."""

    def __init__(self, model: Divisible, how: Recomputed, away: InHostMemory | None) -> None:
        self._plain, self._blocks = model.through, model.blocks
        self._every = how.every
        self._twice = _Twice(model.modules(), how, away)

    def through(self, x: Tensor, batch: Mapping[str, Tensor], blocks: range | None = None) -> Tensor:
        """See ``Model.through``."""
        if not torch.is_grad_enabled():
            return self._plain(x, batch, blocks)
        numbers = range(len(self._blocks)) if blocks is None else blocks
        for start in range(numbers.start, numbers.stop, self._every):
            stretch = range(start, min(start + self._every, numbers.stop))
            if x.requires_grad or self._trained(stretch):
                x = self._twice(partial(self._run, batch, stretch), x)
            else:
                x = self._plain(x, batch, stretch)
        return x

    def _run(self, batch: Mapping[str, Tensor], stretch: range, x: Tensor) -> Tensor:
        return self._plain(x, batch, stretch)

    def _trained(self, stretch: range) -> bool:
        return any(p.requires_grad for number in stretch for p in self._blocks.get_submodule(str(number)).parameters())


class _Twice:
    """Calls a function so that backward can call it again for what was not kept."""

    def __init__(self, modules: Iterable[nn.Module], how: Recomputed, away: InHostMemory | None) -> None:
        self._norms = [module for module in modules if isinstance(module, BatchNorm)]
        self._kept = how.kept
        self._away = away

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """What ``function`` returns of ``inputs``, which are kept."""
        if torch.compiler.is_compiling() and not self._norms and self._away is None:
            return _traced(function, inputs, self._kept)
        return self._called(function, inputs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a second run that differs from the first is not what a trace knows
    def _called(self, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        with nullcontext() if self._away is None else self._away:
            if self._kept == "none":
                return function(*inputs)
            return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=True, context_fn=self._contexts)

    def _contexts(self) -> Contexts:
        first: list[AbstractContextManager[Any]] = []
        again: list[AbstractContextManager[Any]] = []
        if self._norms:
            sums: list[Tensor] = []
            first.append(Pass(self._norms, sums, again=False))
            again.append(Pass(self._norms, sums, again=True))
        if self._kept == "products":
            products = Products(self._away or Waiting())
            first.append(Keeping(products))
            again.append(Giving(products))
        return _Together(first), _Together(again)


class _Together:
    """Several contexts as one; it may be entered more than once, one time after the other."""

    def __init__(self, contexts: Sequence[AbstractContextManager[Any]]) -> None:
        self._contexts = contexts

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context)
            self._entered = stack.pop_all()

    def __exit__(self, *failure: Any) -> bool | None:
        return self._entered.__exit__(*failure)


def _twice_by_itself(block: nn.Module, twice: _Twice) -> Callable[..., Any]:
    """The forward of a block that is called by others, with arguments of their own."""
    plain = block.forward

    @wraps(plain)
    def forward(*inputs: Any, **more: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs, **more)
        return twice(partial(plain, **more), *inputs)

    return forward


def _traced(function: Callable[..., Any], inputs: Sequence[Any], kept: str) -> Any:
    """The same while the compiler looks on: it plans by itself what it keeps of what is marked."""
    if kept == "none":
        return function(*inputs)
    if kept == "inputs":
        return checkpoint(function, *inputs, use_reentrant=False)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=_traced_contexts)


def _traced_contexts() -> Contexts:
    """What torch marks kept operations with, or, where the compiler gave the stretch up and it runs as it is, what stands here."""
    if get_proxy_mode() is not None:
        contexts: Contexts = create_selective_checkpoint_contexts(_policy)
        return contexts
    products = Products(Waiting())
    return Keeping(products), Giving(products)


def _policy(_: Any, operation: Any, *inputs: Any, **more: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_product(operation, inputs, more) else CheckpointPolicy.PREFER_RECOMPUTE
