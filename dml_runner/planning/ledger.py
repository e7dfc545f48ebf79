"""Ledger: what operations compute and hold, noted while they run on tensors that have a shape and no memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dml_runner.parallel.products import is_product

_aten = torch.ops.aten
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACK = _aten._scaled_dot_product_flash_attention_for_cpu_backward
_CELLS, _CELLS_BACK = _aten.mkldnn_rnn_layer, _aten.mkldnn_rnn_layer_backward


class Ledger(TorchDispatchMode):
    """Counts the operations inside, and follows the storages they make until these are gone.

    Storages that come from outside, such as weights and inputs, are not counted.

    Args:
        splits: tells of a new tensor, and of the one that it is a copy of, if it is one, whether a tensor split divides it.

    Attributes:
        flops: of matrix products, convolutions and attention so far, as ``torch.utils.flop_counter`` counts them.
        peak: the most bytes held at a time, and the part of them that a tensor split divides.
    """

    def __init__(self, splits: Callable[[Tensor, Tensor | None], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.peak = (0, 0)
        self._splits = splits
        self._made: list[tuple[int, bool]] = []
        self._live: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._outside: dict[int, Any] = {}
        self._now = [0, 0]
        self._kept: set[int] = set()
        self._products: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and note what it made."""
        kwargs, packet = kwargs or {}, func.overloadpacket
        for leaf in _tensors((args, kwargs)):
            storage = leaf.untyped_storage()
            if storage._cdata not in self._live:
                self._outside[storage._cdata] = storage
        out = func(*args, **kwargs)
        if packet is _CELLS:
            out = (*out[:3], torch.empty(_workspace(args), dtype=torch.uint8))
        self.flops += _flops(packet, args, kwargs, out)
        source = args[0] if packet is _aten._to_copy else None
        serials = [self._note(leaf, source) for leaf in _tensors(out)]
        if is_product(func, args, kwargs):
            self._products.update(serial for serial in serials if serial is not None)
        elif func._schema.is_mutable:  # a result that is written to is not kept
            self._products.difference_update(serials)
        return out

    def keep(self, tensor: Tensor) -> None:
        """Note that backward needs ``tensor``."""
        serial = self._serial(tensor)
        if serial is not None:
            self._kept.add(serial)

    def kept(self, without: Iterable[Tensor]) -> tuple[int, int]:
        """Bytes that backward needs, and the part of them that a tensor split divides; ``without`` these tensors' storages."""
        return self._sum(self._kept.difference(map(self._serial, without)))

    def is_kept(self, tensor: Tensor) -> bool:
        """Whether backward needs ``tensor``, or a part of its storage."""
        return self._serial(tensor) in self._kept

    def products(self) -> tuple[int, int]:
        """Bytes of all results that ``parallel.products`` keeps, and the part of them that a tensor split divides."""
        return self._sum(self._products)

    def kept_products(self) -> tuple[int, int]:
        """Those of them that backward needs."""
        return self._sum(self._products & self._kept)

    def let_go(self, tree: Any) -> tuple[int, int]:
        """Bytes of the tensors of a ``tree`` that backward does not need, and the part of them that a tensor split divides."""
        serials = {serial for tensor in _tensors(tree) if (serial := self._serial(tensor)) is not None}
        return self._sum(serials - self._kept)

    def _serial(self, tensor: Tensor) -> int | None:
        return self._live.get(tensor.untyped_storage()._cdata)

    def _sum(self, serials: Iterable[int]) -> tuple[int, int]:
        found = [self._made[serial] for serial in serials]
        return sum(size for size, _ in found), sum(size for size, split in found if split)

    def _note(self, tensor: Tensor, source: Tensor | None) -> int | None:
        """The number under which the tensor's storage is followed; None: it came from outside."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or key in self._outside:
            return self._live.get(key)
        size, split = storage.nbytes(), self._splits(tensor, source)
        serial = self._live[key] = len(self._made)
        self._made.append((size, split))
        self._watched[key] = weakref.ref(storage, lambda _: self._forget(key))
        self._now[0] += size
        self._now[1] += size if split else 0
        self.peak = max(self.peak, (self._now[0], self._now[1]))
        return serial

    def _forget(self, key: int) -> None:
        size, split = self._made[self._live.pop(key)]
        del self._watched[key]
        self._now[0] -= size
        self._now[1] -= size if split else 0


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


# --- FLOPs ---------------------------------------------------------------------------------------------------------------


def _flops(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Of one operation; a multiplication with its addition is two."""
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet is _ATTENTION:
        return 2 * _attention(args[0], args[1], args[2])
    if packet is _ATTENTION_BACK:  # the scores once more, and the gradients of scores, queries, keys and values
        return 5 * _attention(args[1], args[2], args[3])
    if packet in (_CELLS, _CELLS_BACK):
        inputs, hidden = args[1].shape[1], args[2].shape[1]
        once: int = 2 * args[0].numel() // inputs * args[1].shape[0] * (inputs + hidden)
        return once if packet is _CELLS else 2 * once
    return 0


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """FLOPs of one of attention's products, the mean of the two kinds; all pairs of positions count, masked or not."""
    pairs = math.prod(query.shape[:3]) * key.shape[2]
    return int(pairs * (query.shape[3] + value.shape[3]))


def _workspace(args: Sequence[Any]) -> int:
    """Bytes of what a fused recurrent layer keeps for backward. Only oneDNN knows, so it is asked: a forward on real zeros."""
    shapes = tuple((tuple(each.shape), each.dtype) if isinstance(each, Tensor) else each for each in args)
    return _real_workspace(tuple(tuple(each) if isinstance(each, list) else each for each in shapes))


@cache
def _real_workspace(args: tuple[Any, ...]) -> int:
    with _disable_current_modes(), torch.enable_grad():  # without, there is none
        real = [torch.zeros(each[0], dtype=each[1]) if _is_shape(each) else each for each in args]
        return int(torch.ops.aten.mkldnn_rnn_layer(*real)[3].nbytes)


def _is_shape(each: Any) -> bool:
    return isinstance(each, tuple) and len(each) == 2 and isinstance(each[1], torch.dtype)
