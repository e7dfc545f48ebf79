"""Words from their characters: convolutions of several widths, the largest value of each over the word, highway layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from dml_runner.models.parts.characters import CHARACTERS


class Highway(nn.Module):
    """t * relu(transform(x)) + (1 - t) * x with t = sigmoid(gate(x)) (Srivastava et al. 2015; Kim et al. 2015, equation 8).

    One matrix holds the transform, and below it the gate.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape."""
        transform, gate = self.both(x).chunk(2, dim=-1)
        return torch.lerp(x, relu(transform), gate.sigmoid())


class CharacterCnn(nn.Module):
    """A word's embedding from its characters alone (Kim et al. 2015; Jozefowicz et al. 2016, section 3.2).

    Args:
        width: of a character's embedding.
        filters: of the convolution 1 character wide, 2 wide, and so on.
        highways: highway layers over all filters.
        projection: width of a word's embedding.
    """

    def __init__(self, width: int, filters: Sequence[int], highways: int, projection: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, count, size) for size, count in enumerate(filters, start=1))
        self.highways = nn.ModuleList(Highway(sum(filters)) for _ in range(highways))
        self.projection = nn.Linear(sum(filters), projection)

    def forward(self, characters: Tensor) -> Tensor:
        """(batch, length, word_length) ids -> (batch, length, projection); ``word_length`` is that of the widest filter or more."""
        x = self.characters(characters.flatten(0, 1)).transpose(1, 2)
        found = torch.cat([relu(convolution(x).amax(dim=2)) for convolution in self.convolutions], dim=1)  # relu is monotonic
        for highway in self.highways:
            found = highway(found)
        out: Tensor = self.projection(found).unflatten(0, characters.shape[:2])
        return out
