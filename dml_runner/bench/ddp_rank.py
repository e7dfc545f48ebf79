"""One rank of ``dml bench ddp``: the runner's loop and a script of DistributedDataParallel written by hand, over the same task."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from dml_runner import config, optim
from dml_runner.bench.driving import drive, live
from dml_runner.bench.ranks import Place, be_rank
from dml_runner.bench.task import BATCH, CLASSES, LOG_EVERY, WIDTH, Clock, Mlp, Samples
from dml_runner.comm.links import Links
from dml_runner.comm.world import World
from dml_runner.engines.torch_engine import TorchEngine
from dml_runner.hardware.detect import detect
from dml_runner.models.base import initialise
from dml_runner.parallel.replicate import Replicas, Sum
from dml_runner.planning.plan import lay_out
from dml_runner.run import Run

HIDDEN = 768
WARM_UP = 5


class Wide(Mlp):
    """The task's classifier with 768 neurons a layer: 2.6 MB of gradients, so that the network is what a step waits for."""

    def __init__(self) -> None:
        super().__init__()
        middle = [nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
        self.layers = nn.Sequential(*middle, nn.Linear(HIDDEN, CLASSES))


def by_hand(run: Run, clock: Clock, place: Place) -> None:
    """Plain PyTorch with its defaults. It logs nothing and looks at nothing."""
    model, samples = _model(run), Samples(clock)
    optimizer = _optimizer(run, model)
    replica = DistributedDataParallel(model.layers)
    share = slice(place.rank * BATCH // place.size, (place.rank + 1) * BATCH // place.size)
    for inputs, targets in samples.batches(run.seed):
        loss = cross_entropy(replica(inputs[share]), targets[share])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def by_runner(run: Run, clock: Clock, place: Place) -> None:
    """``TrainLoop``, ``TorchEngine`` and ``Replicas`` as ``dml train strategy=all_reduce`` uses them."""
    samples, model = Samples(clock), _model(run)
    world = World(place.rank, place.size, torch.device("cpu"), place.group, store=place.store)
    layout = lay_out(run, samples.facts, detect(run.hardware))
    how = Sum(Links(place.group, world.sent), layout.algorithm, 1)
    replicas = Replicas(model, world.device, layout.bucket_mb, world.sent, how, carrying=True)
    engine = TorchEngine(model, replicas, _optimizer(run, model), layout, world, run.seed, run.train.clip_norm)
    with tempfile.TemporaryDirectory(prefix="dml-") as name:
        folder = Path(name)
        tracker = live(run, layout, folder) if place.rank == 0 else None
        drive(run, layout, samples.facts, samples, engine, world, folder, tracker)
        if tracker is not None:
            tracker.finish({})


SIDES: dict[str, Callable[[Run, Clock, Place], None]] = {"dml": by_runner, "by hand": by_hand}


def work(told: Any, place: Place) -> Any:
    """Seconds an update of each side in each turn, by the slowest rank; the order turns round from one pair to the next."""
    run = job(Clock(told["steps"], WARM_UP).needed, place.size)
    turns: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(told["pairs"] + 1):
        for name in list(SIDES) if number % 2 else reversed(SIDES):
            clock = Clock(told["steps"], WARM_UP)
            gc.collect()
            place.barrier()
            SIDES[name](run, clock, place)
            slowest = float(place.gather(torch.tensor(clock.step_us * 1e-6, dtype=torch.float64)).max())
            if number:  # the first pair warms up
                turns[name].append(slowest)
    return turns


def job(steps: int, ranks: int) -> Run:
    """The words both sides follow, for ``steps`` updates."""
    words = ["name=bench", "strategy=all_reduce", "hardware=cpu", f"hardware.nodes={ranks}", f"train.steps={steps}"]
    rhythm = [f"train.global_batch={BATCH}", f"train.log_every={LOG_EVERY}", "train.eval_batches=1", "checkpoint.every=null"]
    return config.compose([*words, *rhythm]).run


def _model(run: Run) -> Wide:
    model = Wide()
    initialise(model, run.seed)
    return model


def _optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    return optim.build(run.optimizer, ((p, 0, p.dim() >= 2) for p in model.parameters()))


if __name__ == "__main__":
    be_rank(sys.argv[1:], work)
