"""What language models share: their vocabulary, and the loss and the guesses over tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.models.base import Guess

IGNORED = -100
"""Target of a position that is not predicted (padding)."""


def token_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy in nats, and the number of predicted tokens.

    Args:
        logits: (batch, length, vocabulary), any float type; the sum is taken in fp32, or fp64 where they are.
        targets: (batch, length); ``IGNORED`` where nothing is predicted.
    """
    wide = logits if logits.element_size() > 4 else logits.float()
    total = cross_entropy(wide.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (targets != IGNORED).sum()


def guess_tokens(logits: Tensor, targets: Tensor) -> Guess:
    """The likeliest tokens where one is predicted, and the targets there."""
    there = targets != IGNORED
    likeliest = logits.max(dim=-1).indices  # as argmax, in half the time; to pick logits first would copy them
    return Guess(likeliest[there], targets[there])


def vocabulary_of(vocab_size: int | None, data: DataFacts) -> int:
    """Token ids of the model: its own number or, where that is open, the data's.

    Raises:
        ConfigError: the data has more token ids than the model.
    """
    vocabulary = vocab_size or data.vocabulary
    if data.vocabulary > vocabulary:
        what = "smaller than the data's vocabulary"
        raise ConfigError(Problem("model.vocab_size", what, got=str(vocabulary), allowed=f"null, or at least {data.vocabulary}"))
    return vocabulary
