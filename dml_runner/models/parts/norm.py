"""Normalisation of the residual stream."""

from __future__ import annotations

from torch import nn

EPSILON = 1e-5
"""Added to the variance (layer) or the mean square (rms); GPT-2 and Llama 3 have the same."""


def build_norm(kind: str, hidden: int, bias: bool = True) -> nn.Module:
    """The norm called ``layer`` or ``rms`` over the last dimension, ``hidden`` wide.

    ``layer`` gives mean 0 and variance 1, scales, and shifts where ``bias`` (Ba et al. 2016); ``rms`` gives mean square 1 and scales
    (Zhang and Sennrich 2019).
    """
    if kind == "rms":
        return nn.RMSNorm(hidden, eps=EPSILON)
    return nn.LayerNorm(hidden, eps=EPSILON, bias=bias)
