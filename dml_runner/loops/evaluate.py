"""Evaluation: exact sums over the held-out set, whatever the number of ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from dml_runner.data.parts.order import eval_shares
from dml_runner.loops.session import Session
from dml_runner.loops.stop import Reason
from dml_runner.pulse import START_ALLOWANCE_S


def evaluate(session: Session, batches: int | None) -> dict[str, Any] | Reason:
    """Mean loss over the held-out set, or over each rank's first ``batches`` micro-batches of it.

    Every rank makes as many rounds as the rank with most batches, so that all agree at each round whether to go on.

    Returns:
        ``eval_loss`` (a sample's predictions weighed alike) and ``eval_samples``, or the reason to stop if one came up.
    """
    world, layout = session.world, session.layout
    micro, ranks = layout.batch.micro_batch, layout.mesh.data
    shares = eval_shares(session.facts.eval_samples, micro, layout.mesh.data_rank(world.rank), ranks)
    rounds = -(-session.facts.eval_samples // (micro * ranks))
    if batches is not None:
        rounds = min(rounds, batches)
    loss, weight = torch.zeros(2, dtype=torch.float64, device=world.device)
    samples = 0
    for number in range(rounds):
        _beat(session)
        batch = session.stop.breakable(partial(session.data.eval_batch, shares[number])) if number < len(shares) else None
        reason = session.agreed()
        if reason is not Reason.NONE:
            return reason
        if batch is not None:
            total, counted = session.engine.evaluate(batch)
            loss, weight, samples = loss + total, weight + counted, samples + len(shares[number])
    total_loss, total_weight, total_samples = world.gather([float(loss), float(weight), samples]).sum(dim=0).tolist()
    return {"eval_loss": total_loss / total_weight, "eval_samples": int(total_samples)}


def _beat(session: Session) -> None:
    """Getting on; a compiled model is compiled anew for evaluation, and again for a short last batch."""
    if session.run.train.compile:
        session.pulse.allow(START_ALLOWANCE_S)
    else:
        session.pulse.beat()
