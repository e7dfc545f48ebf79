"""Random numbers of a rank's own, where it computes what no other rank does; before and after, all ranks draw the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_APART = 0x9E3779B97F4A7C15


class OwnDraws:
    """While it is on, torch draws from a stream of this rank's.

    The stream is keyed by a number that all ranks draw from their common one and by the rank; so it is another one each time, and the
    same again where a forward is repeated from the state in which it began (recomputation).
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._common: tuple[torch.Generator, Tensor] | None = None

    @property
    def on(self) -> bool:
        """Whether the stream is the rank's own."""
        return self._common is not None

    def start(self, device: torch.device) -> None:
        """Draw apart from the others on ``device``."""
        number = int(torch.empty((), dtype=torch.int64, device="cpu").random_())  # on the host: nothing waits for an accelerator
        generator = generator_of(device)
        self._common = generator, generator.get_state()
        generator.manual_seed((number + (self._rank + 1) * _APART) & (2**63 - 1))

    def stop(self) -> None:
        """Draw as all do; nothing, if that is so."""
        if self._common is not None:
            generator, state = self._common
            generator.set_state(state)
            self._common = None


def generator_of(device: torch.device) -> torch.Generator:
    """From which torch draws on ``device``."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator: torch.Generator = torch.cuda.default_generators[index]
        return generator
    return torch.default_generator


def drops(module: nn.Module) -> bool:
    """Whether ``module`` drops out anything when it trains: by torch's modules, or by a rate called ``dropout``."""
    for part in module.modules():
        rate = part.p if isinstance(part, nn.Dropout) else getattr(part, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            return True
    return False
