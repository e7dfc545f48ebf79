"""From a position back to its token, by the embedding of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class TiedDecoder(nn.Module):
    """The token embedding as output projection (Press and Wolf 2017), with a bias a token."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(vocabulary))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(..., hidden), and the embedding (vocabulary, hidden) -> (..., vocabulary)."""
        return linear(x, embedding, self.bias)
