"""A region: the layers between a column layer's input and a row layer's output, of which each rank computes its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from dml_runner.comm.links import Links
from dml_runner.parallel.tensor.apart import OwnDraws, drops
from dml_runner.parallel.tensor.crossings import as_multiplied, enter, enter_whole, join_parts, leave, leave_in_parts, take_part


class Text:
    """What the blocks of one model know of the text that they compute: whether a rank holds a part of it.

    Attributes:
        length: of the whole text, while a block computes a part of it; None: ranks hold all of it.
    """

    def __init__(self) -> None:
        self.length: int | None = None


class Region:
    """One module that holds column and row layers side by side.

    Column layers that take the same tensor share its way in, and the sum of its gradients over the ranks.

    Args:
        module: that holds the layers; its forward, and theirs, are replaced.
        columns: names of the column layers in it.
        rows: of the row layers.
    """

    def __init__(self, module: nn.Module, columns: list[str], rows: list[str], links: Links, text: Text) -> None:
        self._module, self._links, self._text = module, links, text
        self._shared = len(columns) > 1
        self._last: tuple[Tensor, Tensor] | None = None
        self._draws = OwnDraws(links.rank)
        self._drops = drops(module)
        for name in columns:
            _replace(module.get_submodule(name), self._column)
        for name in rows:
            _replace(module.get_submodule(name), self._row)
        inner: Callable[..., Any] = module.forward

        def forward(*inputs: Any, **named: Any) -> Any:
            try:
                return inner(*inputs, **named)
            finally:  # a forward may end early: recomputation stops when it has what it wants
                self._last = None
                self._draws.stop()

        module.forward = forward

    def _column(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return linear(self._enter(x), layer.weight, layer.bias)

    def _row(self, layer: nn.Linear, x: Tensor) -> Tensor:
        share = linear(x, layer.weight)
        self._draws.stop()
        out: Tensor = leave(share, self._links) if self._text.length is None else leave_in_parts(share, self._links)
        return out if layer.bias is None else out + layer.bias.type_as(out)

    def _enter(self, x: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is x:
            return self._last[1]
        if self._drops and self._module.training and self._text.length is None and not self._draws.on:
            self._draws.start(x.device)
        narrow, length = as_multiplied(x), self._text.length
        entered: Tensor = enter(narrow, self._links) if length is None else enter_whole(narrow, self._links, length)
        if self._shared:
            self._last = x, entered
        return entered


def hold_parts(block: nn.Module, links: Links, text: Text, first: bool, last: bool) -> None:
    """Have ``block`` compute this rank's part of each text; the ``first`` takes its part, the ``last`` puts all parts together.

    A block that is called with more than ``x`` and the batch, with what is kept of the tokens before, computes the whole.
    """
    inner: Callable[..., Tensor] = block.forward
    draws, dropping = OwnDraws(links.rank), drops(block)

    def forward(x: Tensor, batch: Mapping[str, Tensor], *more: Any, **named: Any) -> Tensor:
        if any(value is not None for value in (*more, *named.values())):
            return inner(x, batch, *more, **named)
        length = length_of(batch)
        if first:
            x = take_part(x, links)
        text.length = length
        if dropping and block.training:
            draws.start(x.device)
        try:
            x = inner(x, batch)
        finally:
            text.length = None
            draws.stop()
        return join_parts(x, links, length) if last else x

    block.forward = forward


def length_of(batch: Mapping[str, Tensor]) -> int:
    """Positions of the texts of a batch."""
    return batch["inputs" if "inputs" in batch else "characters"].shape[1]


def _replace(layer: nn.Module, compute: Callable[[Any, Tensor], Tensor]) -> None:
    def forward(x: Tensor) -> Tensor:
        return compute(layer, x)

    layer.forward = forward
