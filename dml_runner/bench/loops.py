"""The runner's loop and a loop written by hand, over the same task."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dml_runner.bench.driving import drive, live
from dml_runner.bench.task import Task
from dml_runner.comm.world import World
from dml_runner.engines.torch_engine import TorchEngine
from dml_runner.hardware.detect import detect
from dml_runner.planning.plan import lay_out


def by_hand(task: Task) -> nn.Module:
    """Plain PyTorch: forward, backward, update. It logs nothing and looks at nothing."""
    model = task.model().layers
    optimizer = task.optimizer(model)
    for inputs, targets in task.samples.batches(task.run.seed):
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


def by_runner(task: Task) -> nn.Module:
    """``TrainLoop`` and ``TorchEngine`` as ``dml train`` uses them on one rank: live console, metrics.jsonl, pulse."""
    run, world = task.run, World(0, 1, torch.device("cpu"))
    layout = lay_out(run, task.samples.facts, detect(run.hardware))
    model = task.model()
    engine = TorchEngine(model, None, task.optimizer(model), layout, world, run.seed, run.train.clip_norm)
    with tempfile.TemporaryDirectory(prefix="dml-") as name:
        folder = Path(name)
        tracker = live(run, layout, folder)
        drive(run, layout, task.samples.facts, task.samples, engine, world, folder, tracker)
        tracker.finish({})
    return model.layers
