"""One rank of ``dml bench overlap``: the runner's replicas around a module whose backward sleeps instead of computing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dml_runner.bench.ranks import Place, be_rank
from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links
from dml_runner.parallel.replicate import MB, Replicas, Sum
from dml_runner.schema.strategy import Algorithm

WARM_UP = 2
"""Rounds before the first that counts, without sleeps: their median is how long communication takes."""
SHARES = (0.5, 1.0, 2.0)
"""Seconds of computing over those of communication."""
NODE = 2
FP32 = 4


class _Played(torch.autograd.Function):
    """A layer whose backward takes the time it is told."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, seconds: Tensor) -> Tensor:
        ctx.save_for_backward(weights, seconds)
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, seconds = ctx.saved_tensors
        time.sleep(float(seconds))
        return gradients[0], torch.ones_like(weights), None


class Played(nn.Module):
    """Layers of equal size that only take time.

    Attributes:
        seconds: of each layer's backward.
    """

    def __init__(self, layers: int, elements: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.zeros(elements) for _ in range(layers))
        self.seconds = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """``x``, whatever it is."""
        seconds = torch.tensor(self.seconds)
        for weights in self.layers:
            x = _Played.apply(x, weights, seconds)  # type: ignore[no-untyped-call]
        return x


def work(told: Any, place: Place) -> Any:
    """For each algorithm and share of computing: seconds of a step that computes, of one that sums, and of one that does both."""
    return {name: _measure(name, told["layers"], told["elements"], told["rounds"], place) for name in told["algorithms"]}


def _measure(algorithm: Algorithm, layers: int, elements: int, rounds: int, place: Place) -> list[dict[str, Any]]:
    module, sent = Played(layers, elements), Sent()
    how = Sum(Links(place.group, sent), algorithm, NODE)
    replicas = Replicas(module, torch.device("cpu"), 0.99 * elements * FP32 / MB, sent, how)  # a layer each fills a bucket
    replicas.settle(lambda whole: _backward(whole, True, replicas))
    assert len(replicas.buckets) == layers, replicas.buckets

    def step(seconds: float, summing: bool) -> float:
        module.seconds = seconds / layers
        place.barrier()
        started = time.perf_counter()
        _backward(replicas.module, summing, replicas)
        took = time.perf_counter() - started
        module.zero_grad(set_to_none=True)
        return float(place.gather(torch.tensor(took, dtype=torch.float64)).max())

    alone = sorted(step(0.0, True) for _ in range(WARM_UP + rounds))[(WARM_UP + rounds) // 2]
    return [_turns(step, share * alone, rounds) for share in SHARES]


def _turns(step: Callable[[float, bool], float], seconds: float, rounds: int) -> dict[str, Any]:
    kinds = {"compute": (seconds, False), "sum": (0.0, True), "both": (seconds, True)}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, kind in kinds.items():
            found[name].append(step(*kind))
    return found


def _backward(whole: nn.Module, summing: bool, replicas: Replicas) -> None:
    with nullcontext() if summing else replicas.accumulate():
        whole(torch.ones((), requires_grad=True)).backward()


if __name__ == "__main__":
    be_rank(sys.argv[1:], work)
