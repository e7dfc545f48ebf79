"""Evaluation: exact sums over the held-out set, whatever the number of ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dml_runner import metrics
from dml_runner.comm.meeting import Meeting
from dml_runner.data.parts.order import eval_shares
from dml_runner.errors import Diverged, Problem, RunFailed
from dml_runner.loops.session import Session
from dml_runner.loops.stop import Reason
from dml_runner.pulse import START_ALLOWANCE_S

if TYPE_CHECKING:
    from torchmetrics import Metric


def evaluate(session: Session, batches: int | None) -> dict[str, Any] | Reason:
    """Mean loss and metrics over the held-out set, or over each rank's first ``batches`` micro-batches of it.

    Every rank makes as many rounds as the rank with most batches, so that all agree at each round whether to go on. Ranks that hold
    parts of one model evaluate the same batches together, and one of them tells what came out.

    Returns:
        ``eval_loss`` (a sample's predictions weighed alike), ``eval_samples`` and ``eval_<name>`` of each metric, the same on every
        rank; or the reason to stop if one came up.

    Raises:
        Diverged: the loss is not finite.
        RunFailed: a metric does not come to one number.
    """
    world, layout = session.world, session.layout
    micro, mine = layout.batch.micro_batch, layout.data_rank(world.rank)
    places = sorted({place for place in map(layout.data_rank, world.living) if place is not None})
    ranks = len(places)
    shares = [] if mine is None else eval_shares(session.facts.eval_samples, micro, places.index(mine), ranks)
    rounds = -(-session.facts.eval_samples // (micro * ranks))
    if batches is not None:
        rounds = min(rounds, batches)
    meters, there = _meters(session), world.living
    loss, weight = torch.zeros(2, dtype=torch.float64, device=world.device)
    samples = 0
    for number in range(rounds):
        _beat(session)
        batch = session.stop.breakable(partial(session.data.eval_batch, shares[number])) if number < len(shares) else None
        reason = session.agreed()
        if reason is not Reason.NONE:
            return reason
        if batch is not None:
            total, counted, guess = session.engine.evaluate(batch)
            loss, weight = loss + total, weight + counted
            samples += len(shares[number]) if layout.speaks(world.rank) else 0
            for meter in meters.values() if len(guess.targets) else ():
                meter.update(guess.predicted, guess.targets)
    total_loss, total_weight, total_samples = world.gather([float(loss), float(weight), samples]).sum(dim=0).tolist()
    if world.living != there:  # who died had a share
        return evaluate(session, batches)
    if not math.isfinite(total_loss):
        raise Diverged(Problem("eval_loss", "is not a finite number", got=str(total_loss), hint="the weights are worth nothing"))
    sums = {"eval_loss": total_loss / max(1.0, total_weight), "eval_samples": int(total_samples)}
    return sums | {f"eval_{name}": _figure(name, meter) for name, meter in meters.items()}


def _meters(session: Session) -> Mapping[str, Metric]:
    """The job's metrics, new ones, where the engine computes."""
    model, facts = session.run.model, session.facts
    if model.objective == "classify":
        classes = max(facts.classes, model.classes or 0)
    else:
        classes = max(facts.vocabulary, getattr(model, "vocab_size", None) or 0)
    session.pulse.allow(START_ALLOWANCE_S)  # the first one imports torchmetrics
    found = {name: metrics.build(name, classes).to(session.world.device) for name in metrics.names(session.run)}
    if session.world.meeting is not None:
        for meter in found.values():
            meter.distributed_available_fn = lambda: True
            meter.dist_sync_fn = partial(_gather, session.world.meeting)
    return found


def _gather(meeting: Meeting, mine: Tensor, group: object = None) -> list[Tensor]:
    """What torchmetrics adds its counts up by, where there is no group of the backend."""
    return meeting.gather(mine)


def _figure(name: str, meter: Metric) -> float:
    """What a metric comes to over all ranks; called by all together, those without a batch included."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric", category=UserWarning)
        value = meter.compute()
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        problem = Problem("train.metrics", f"{name} does not come to one number", got=type(value).__name__)
        raise RunFailed(problem) from None


def _beat(session: Session) -> None:
    """Getting on; a compiled model is compiled anew for evaluation, and again for a short last batch."""
    if session.run.train.compile:
        session.pulse.allow(START_ALLOWANCE_S)
    else:
        session.pulse.beat()
