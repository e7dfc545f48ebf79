"""Run: the sections of one job, and what can be checked without knowing the world."""

from __future__ import annotations

from collections.abc import Iterator

from dml_runner.errors import Problem
from dml_runner.schema.base import CountOrZero, Name, Section
from dml_runner.schema.checkpoint import Checkpoint
from dml_runner.schema.data import Data, Synthetic, Texts
from dml_runner.schema.engine import Engine
from dml_runner.schema.hardware import Hardware
from dml_runner.schema.launcher import Launcher
from dml_runner.schema.lr_schedule import LrSchedule
from dml_runner.schema.model import Model
from dml_runner.schema.optimizer import Optimizer
from dml_runner.schema.quantize import Quantize
from dml_runner.schema.recompute import Recompute
from dml_runner.schema.strategy import Strategy
from dml_runner.schema.tracker import Tracker
from dml_runner.schema.train import Train


class Run(Section):
    """One job: what is trained, how it is spread, and on which machine."""

    name: Name
    """Name of the job; part of its folder's name."""
    seed: CountOrZero
    """Seed of weights, sample order and dropout."""
    outputs: Name
    """Folder under which runs are kept."""
    run: Name | None
    """The run's own folder; null: ``<outputs>/train/<time>-<name>``."""
    plugins: Name | tuple[Name, ...] | None
    """Python files with options of your own, on the command line only: a file never loads code."""
    strategy: Strategy
    """How the work is spread over the ranks."""
    engine: Engine
    """What executes the layout."""
    model: Model
    """What is trained."""
    data: Data
    """What it is trained on."""
    hardware: Hardware
    """The machine."""
    recompute: Recompute
    """What is computed twice so that it need not be kept."""
    quantize: Quantize
    """In how few bits numbers travel."""
    optimizer: Optimizer
    """How gradients become updates."""
    lr_schedule: LrSchedule
    """How the learning rate moves."""
    tracker: Tracker
    """Where metrics go beside the run folder."""
    launcher: Launcher
    """Who starts the ranks."""
    train: Train
    """Length, batch, precision and rhythm."""
    checkpoint: Checkpoint
    """What is kept, and what a new start continues from."""


def contradictions(run: Run) -> Iterator[Problem]:
    """What the sections of one job say against each other."""
    model, schedule, train = run.model, run.lr_schedule, run.train
    yield from model.contradictions()
    if isinstance(run.data, Texts | Synthetic) and model.length is not None and (run.data.seq_len or 0) > model.length:
        what = f"longer than what model={model.name} can see"
        yield Problem("data.seq_len", what, got=str(run.data.seq_len), allowed=f"1 to {model.length}")
    if schedule.batch_rule != "none" and schedule.base_batch is None:
        yield Problem(
            "lr_schedule.base_batch",
            f"needed by batch_rule={schedule.batch_rule}",
            got="null",
            allowed="the global batch optimizer.lr was chosen for",
        )
    if train.epochs is None and schedule.warmup_steps > train.steps:
        yield Problem(
            "lr_schedule.warmup_steps", "longer than the run", got=str(schedule.warmup_steps), allowed=f"0 to train.steps={train.steps}"
        )
    for key, metric in (("train.stop.metric", train.stop.metric), ("checkpoint.best", run.checkpoint.best)):
        if metric is not None and train.eval_every is None:
            yield Problem("train.eval_every", f"needed by {key}={metric}", got="null", allowed="1 or more steps")
