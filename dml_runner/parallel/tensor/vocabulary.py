"""Tokens divided over the ranks: their embedding, their scores, and the cross entropy over all of them (Shoeybi et al. 2019, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import embedding, linear

from dml_runner.comm.laws import bounds
from dml_runner.comm.links import Links
from dml_runner.parallel.tensor.crossings import as_multiplied, enter, leave
from dml_runner.parallel.tensor.moves import put_together, rows_of_all


def divide_embedding(module: nn.Embedding, links: Links) -> None:
    """Have ``module``, which holds this rank's rows of ``num_embeddings``, look up what it has; the ranks' finds are summed."""
    cuts = bounds(module.num_embeddings, links.size)

    def forward(ids: Tensor) -> Tensor:
        place, here = _place(ids, cuts[links.rank], cuts[links.rank + 1])
        found = embedding(place, module.weight).masked_fill_(~here[..., None], 0.0)
        out: Tensor = leave(found, links)
        return out

    module.forward = forward  # type: ignore[assignment,method-assign]


class DividedVocabulary:
    """The scores of this rank's tokens of a ``vocabulary``, as one with those of the other ranks.

    Attributes:
        first: id of the first of them.
        end: the first id behind them.
    """

    def __init__(self, vocabulary: int, links: Links) -> None:
        self._vocabulary, self._links = vocabulary, links
        self.first, self.end = bounds(vocabulary, links.size)[links.rank : links.rank + 2]

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., hidden) -> (..., own tokens); the gradient of ``x`` is summed over the ranks."""
        return linear(enter(as_multiplied(x), self._links), weight, bias)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # ranks talk inside an autograd function
    def cross_entropy(self, scores: Tensor, targets: Tensor, ignored: int) -> Any:
        """Summed over the targets that are not ``ignored``: (positions, own tokens) and (positions,) -> a scalar, the same on all ranks.

        Each rank tells two numbers a position: the logarithm of its sum of exponentials, and its score of the target, if it is its own.
        """
        return _CrossEntropy.apply(scores, targets, self, self._links, ignored)  # type: ignore[no-untyped-call]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def likeliest(self, scores: Tensor) -> Tensor:
        """(..., own tokens) -> (...), the ids with the highest scores of all; of equal ones the first."""
        best, place = scores.max(dim=-1)
        both = rows_of_all(self._links, torch.stack((best.double(), (place + self.first).double())))  # ids are exact in fp64
        winner = both[:, 0].max(dim=0, keepdim=True).indices
        return both[:, 1].gather(0, winner)[0].long()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def whole(self, scores: Tensor) -> Tensor:
        """(..., own tokens) -> (..., vocabulary), without a gradient."""
        return put_together(self._links, scores.detach(), self._vocabulary, scores.dim() - 1)


class _CrossEntropy(Function):
    @staticmethod
    def forward(context: Any, scores: Tensor, targets: Tensor, tokens: DividedVocabulary, links: Links, ignored: int) -> Tensor:
        place, here = _place(targets, tokens.first, tokens.end)
        among_own = scores.log_softmax(dim=1)  # one pass, and half of backward's work
        mine = scores[:, 0] - among_own[:, 0]
        own = scores.gather(1, place[:, None])[:, 0].where(here, 0.0)
        parts = rows_of_all(links, torch.stack((mine, own)))
        total, counted = parts[:, 0].logsumexp(dim=0), targets != ignored
        context.save_for_backward(among_own, (mine - total).exp(), place, here, counted)
        return (total - parts[:, 1].sum(dim=0)).where(counted, 0.0).sum()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        among_own, of_all, place, here, counted = context.saved_tensors
        weight = gradient * counted
        out = among_own.exp().mul_((weight * of_all)[:, None])
        out.scatter_add_(1, place[:, None], -(weight * here)[:, None])
        return out, None, None, None, None


def _place(ids: Tensor, first: int, end: int) -> tuple[Tensor, Tensor]:
    """Where each id stands among those from ``first`` to ``end``, 0 for another's, and whether it is one of them."""
    here = (ids >= first) & (ids < end)
    return (ids - first).where(here, 0), here
