"""From a position back to its token, by the embedding of tokens."""

from __future__ import annotations

import torch
from torch import nn


class TiedDecoder(nn.Module):
    """The token embedding as output projection (Press and Wolf 2017), with a bias a token, which is all there is here."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(vocabulary))
