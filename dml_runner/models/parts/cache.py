"""What a language model keeps of the tokens it has seen, so that the next one costs one token and not the whole text."""

from __future__ import annotations

from torch import Tensor, nn


class KeyValueCache:
    """Keys and values of every attention layer, for up to ``capacity`` tokens of one batch, or the state of a recurrent model.

    A model adds the new tokens layer by layer (``extend``), or puts one state in the place of another (``keep``), and counts the tokens
    once, at the end of its forward (``advance``). Gradients do not flow through it.

    Attributes:
        capacity: tokens it has room for; None: a state is all that is kept, and there is no end.
        length: tokens it holds.
    """

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.length = 0
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._states: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new tokens' ``key`` and ``value`` of ``layer``, (batch, heads, new, width), and return those of all tokens."""
        end = self.length + key.shape[2]
        if layer not in self._kept:
            assert self.capacity is not None, "attention needs to know how far back it reaches"
            batch, heads, _, width = key.shape
            self._kept[layer] = (key.new_empty(batch, heads, self.capacity, width), value.new_empty(batch, heads, self.capacity, width))
        keys, values = self._kept[layer]
        keys[:, :, self.length : end] = key.detach()
        values[:, :, self.length : end] = value.detach()
        return keys[:, :, :end], values[:, :, :end]

    def kept(self, module: nn.Module) -> Tensor | None:
        """The state of ``module`` after the tokens held; None: there are none."""
        return self._states.get(module)

    def keep(self, module: nn.Module, state: Tensor) -> None:
        """Let ``state`` be that of ``module``, with the tokens that ``advance`` counts."""
        self._states[module] = state.detach()

    def advance(self, tokens: int) -> None:
        """Every layer has kept ``tokens`` more."""
        self.length += tokens

    def clear(self) -> None:
        """Forget the tokens; the memory is used again."""
        self.length = 0
        self._states.clear()
