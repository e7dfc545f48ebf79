"""Long short-term memory over sequences, and how recurrent weights start."""

from __future__ import annotations

import math
import warnings
from functools import cache

import torch
from torch import Tensor, nn


class ProjectedLstm(nn.LSTM):
    """A layer of LSTM cells whose output is projected before it leaves the cell, and before it returns (Sak et al. 2014, section 2).

    torch's cell adds two biases; here one is learned, as published, and the other is a buffer of zeros.
    """

    def __init__(self, inputs: int, hidden: int, projection: int) -> None:
        _let_torch_have_said()
        super().__init__(inputs, hidden, batch_first=True, proj_size=projection)
        del self.bias_hh_l0
        self.register_buffer("bias_hh_l0", torch.zeros(4 * hidden), persistent=False)

    def sequence(self, x: Tensor) -> Tensor:
        """(batch, length, inputs) -> (batch, length, projection), from a state of zeros."""
        out: Tensor = self(x)[0]
        return out

    def fill_buffer(self) -> None:
        """Zero the bias that is not learned."""
        for buffer in self.buffers():
            buffer.zero_()


@cache
def _let_torch_have_said() -> None:
    """Once a process torch warns, in its first call on a CPU, that oneDNN has no projections and its own code runs: no news to a user."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "LSTM with projections", UserWarning)
        nn.LSTM(1, 2, proj_size=1, device="cpu")(torch.zeros(1, 1, device="cpu"))


def turned(x: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, length, width), the last position first.

    Where there is a ``mask`` (batch, length), bool, the positions where it is true, which stand first, change places among themselves:
    what stands behind them as padding stays there. Turned twice, everything is where it was.
    """
    if mask is None:
        return x.flip(1)
    lengths = mask.sum(dim=1, keepdim=True)
    places = torch.arange(x.shape[1], device=x.device)
    order = torch.where(places < lengths, lengths - 1 - places, places)
    return x[torch.arange(len(x), device=x.device)[:, None], order]


def initialise_recurrent(name: str, parameter: Tensor, hidden: int, gates: int, generator: torch.Generator) -> None:
    """Fill a parameter of torch's LSTM (4 ``gates``) or GRU (3), whose cell is ``hidden`` wide, with its starting values.

    Matrices are uniform within 1 / sqrt(hidden), biases 0; an LSTM's forget gate starts from 1, open, so that a gradient
    reaches far back from the first step (Jozefowicz et al. 2015, section 4).
    """
    if parameter.dim() > 1:
        bound = 1 / math.sqrt(hidden)
        parameter.uniform_(-bound, bound, generator=generator)
        return
    parameter.zero_()
    if gates == 4 and name.endswith("bias_ih_l0"):
        parameter[hidden : 2 * hidden] = 1.0
