"""Normalisation of the residual stream."""

from __future__ import annotations

from torch import nn

EPSILON = 1e-5
"""What GPT-2 and Llama 3 add."""


def build_norm(kind: str, hidden: int, bias: bool = True, epsilon: float = EPSILON) -> nn.Module:
    """The norm called ``layer`` or ``rms`` over the last dimension, ``hidden`` wide.

    ``layer`` gives mean 0 and variance 1, scales, and shifts where ``bias`` (Ba et al. 2016); ``rms`` gives mean square 1 and scales
    (Zhang and Sennrich 2019). ``epsilon`` is added to the variance or the mean square before its root.
    """
    if kind == "rms":
        return nn.RMSNorm(hidden, eps=epsilon)
    return nn.LayerNorm(hidden, eps=epsilon, bias=bias)
