"""Results of matrix products, kept between two runs of the same stretch of a model.

torch's own contexts for it (create_selective_checkpoint_contexts) hold a result by reference. Where a later operation writes into that
memory through an alias that autograd does not follow, as torch's GRU on a CPU does, they hand out other numbers, and gradients are wrong
without a word. They serve one backward only, too, and keep on the device alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PRODUCTS = frozenset(
    f"aten::{name}"
    for name in (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "_addmm_activation",
        "convolution",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "mkldnn_rnn_layer",
        "_cudnn_rnn",
    )
)
"""Operations whose results cost more to compute than to keep. The last two are whole recurrent layers in one kernel: a chain of products,
of which nothing can be had without all of it. Where such a layer is made of single operations, they write into each other's results, which
are then not kept: the layer is computed again."""
RATES = ("dropout_p", "dropout")


class Keeper(Protocol):
    """Where a kept tensor waits."""

    def pack(self, tensor: Tensor) -> Any:
        """What is kept in its place."""

    def unpack(self, kept: Any) -> Tensor:
        """The tensor, where it was."""


class Products:
    """What is kept of one run, by operation and the how-manieth call of it.

    Args:
        keeper: where tensors wait.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._kept: dict[tuple[Any, int], Any] = {}
        self._owners: dict[int, tuple[Any, int]] = {}

    def keep(self, operation: Any, number: int, result: Any) -> None:
        """``result`` is what the call gave."""
        key = (operation, number)
        self._kept[key] = tree_map(lambda x: _Kept(self._keeper.pack(x.detach())) if isinstance(x, Tensor) else x, result)
        self._owners |= {_memory(x): key for x in _tensors(result)}

    def forget(self, tensor: Tensor) -> None:
        """``tensor`` was written to: a result in the same memory is kept no longer."""
        self._kept.pop(self._owners.pop(_memory(tensor), None), None)  # type: ignore[arg-type]

    def has(self, operation: Any, number: int) -> bool:
        """Whether the call's result is kept."""
        return (operation, number) in self._kept

    def give(self, operation: Any, number: int) -> Any:
        """The call's result, a new tensor each time: autograd will write into it whose it is."""
        return tree_map(lambda x: self._keeper.unpack(x.packed).detach() if isinstance(x, _Kept) else x, self._kept[operation, number])


class _Kept:
    def __init__(self, packed: Any) -> None:
        self.packed = packed


class Keeping(TorchDispatchMode):
    """Inside, results of matrix products are kept."""

    def __init__(self, products: Products) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._products = products
        self._calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if is_product(func, args, kwargs):
            self._products.keep(func, self._calls[func], out)
            self._calls[func] += 1
        else:
            for tensor in _written(func, args, kwargs):
                self._products.forget(tensor)
        return out


class Giving(TorchDispatchMode):
    """Inside, the same operations run again, but for those whose results are kept."""

    def __init__(self, products: Products) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._products = products
        self._calls: Counter[Any] = Counter()

    def __enter__(self) -> Giving:
        """From the first call on."""
        self._calls.clear()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run an operation, or hand out what it gave the first time."""
        kwargs = kwargs or {}
        if not is_product(func, args, kwargs):
            return func(*args, **kwargs)
        number = self._calls[func]
        self._calls[func] += 1
        return self._products.give(func, number) if self._products.has(func, number) else func(*args, **kwargs)


def is_product(operation: Any, inputs: Sequence[Any], more: Mapping[str, Any]) -> bool:
    """Whether the result of a call is kept.

    One that drew random numbers is not: were it left out of the second run, whatever is drawn behind it would differ from the first.
    """
    if not _multiplies(operation):
        return False
    place, name = _rate(operation)
    return not (name and (inputs[place] if place < len(inputs) else more.get(name, 0.0)))


@cache
def _multiplies(operation: Any) -> bool:
    schema = getattr(operation, "_schema", None)
    return schema is not None and schema.name in PRODUCTS and not schema.is_mutable


@cache
def _rate(operation: Any) -> tuple[int, str]:
    """Place and name of the argument that says how much an operation drops; no name: it draws nothing."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return 0, ""
    return next(((place, each.name) for place, each in enumerate(operation._schema.arguments) if each.name in RATES), (0, ""))


def _written(operation: Any, inputs: Sequence[Any], more: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call writes to."""
    for place, name in _targets(operation):
        yield from _tensors(inputs[place] if place < len(inputs) else more.get(name))


@cache
def _targets(operation: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of the arguments that an operation writes to; collectives do not say, and may write to all."""
    schema = getattr(operation, "_schema", None)
    if schema is None:
        return ()
    silent = operation.namespace == "c10d"
    return tuple(
        (place, each.name)
        for place, each in enumerate(schema.arguments)
        if silent or (each.alias_info is not None and each.alias_info.is_write)
    )


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _memory(tensor: Tensor) -> int:
    number: int = tensor.untyped_storage()._cdata
    return number
