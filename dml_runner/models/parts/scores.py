"""Scores: how likely a model of tokens finds each token, from their projection to the loss. The vocabulary may be divided over ranks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import linear

from dml_runner.models.base import Guess
from dml_runner.models.parts.language import IGNORED, guess_tokens, token_loss


class Division(Protocol):
    """Scores of a share of the vocabulary, worked out as one with those that other ranks hold."""

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., hidden) -> scores of the share, (..., tokens of it)."""

    def cross_entropy(self, scores: Tensor, targets: Tensor, ignored: int) -> Tensor:
        """Summed over the targets that are not ``ignored``, in nats: (positions, tokens of the share), floats of at least fp32, and
        (positions,)."""

    def likeliest(self, scores: Tensor) -> Tensor:
        """The ids with the highest scores, (...), int64."""

    def whole(self, scores: Tensor) -> Tensor:
        """(..., tokens of the share) -> (..., vocabulary), without a gradient."""


class Scores:
    """What a model does with the scores of tokens: each whole or, where there is a ``division``, one rank's share of them."""

    def __init__(self) -> None:
        self.division: Division | None = None

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., hidden) -> (..., vocabulary), by a matrix (vocabulary, hidden) and a bias a token, or by the share of both that is here."""
        return linear(x, weight, bias) if self.division is None else self.division.project(x, weight, bias)

    def loss(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross entropy and the number of predicted tokens, as ``token_loss``; the same on all ranks."""
        if self.division is None:
            return token_loss(scores, targets)
        wide = scores if scores.element_size() > 4 else scores.float()
        total = self.division.cross_entropy(wide.flatten(0, -2), targets.flatten(), IGNORED)
        return total, (targets != IGNORED).sum()

    def guess(self, scores: Tensor, targets: Tensor) -> Guess:
        """The likeliest tokens where one is predicted, and the targets there; the same on all ranks."""
        if self.division is None:
            return guess_tokens(scores, targets)
        there = targets != IGNORED
        return Guess(self.division.likeliest(scores)[there], targets[there])

    def whole(self, scores: Tensor) -> Tensor:
        """Scores of the whole vocabulary, of which to draw a token."""
        return scores if self.division is None else self.division.whole(scores)
