"""The last step of a pipeline as it ran: gathered from the ranks, beside what was predicted, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from dml_runner.loops.session import Session
from dml_runner.parallel.pipeline.executor import measured
from dml_runner.planning.costs import Work, on_paper
from dml_runner.schedules import build
from dml_runner.schedules.drawing import as_svg
from dml_runner.schedules.timeline import Timeline


def last_step(session: Session) -> Timeline | None:
    """What each stage of the first replica did in its last step, in seconds; None: there are no stages, or nothing was done.

    Called by all ranks together. Clocks of different hosts are set by when each was ready to begin the step.
    """
    layout, mesh = session.layout, session.layout.mesh
    if layout.stages is None or mesh.pipeline == 1:
        return None
    times, began = session.engine.times()
    schedule = build(layout.stages, mesh.pipeline, layout.batch.accumulation)
    longest = max(len(actions) for actions in schedule.ranks)
    padded = torch.zeros(longest, 2, dtype=torch.float64)
    padded[: len(times)] = times - (began if layout.nodes > 1 else 0.0)
    rows = session.world.gather_tensor(padded.flatten())
    if not rows.any():
        return None
    stages = [rows[rank].view(longest, 2) for rank in mesh.along("pipeline", 0)]
    return measured(schedule, [stage[: len(actions)] for stage, actions in zip(stages, schedule.ranks, strict=True)])


def drawn(session: Session, step: Timeline, plan: Mapping[str, Any]) -> str:
    """An SVG of a step as it ran, below what ``plan`` predicted of it, if it did."""
    assert session.layout.stages is not None
    works = [Work(stage["forward_flops"], stage["backward_flops"], stage["weight_flops"]) for stage in plan.get("stages", ())]
    panels = {}
    if works and sum(work.all for work in works):
        panels["predicted by FLOPs, at the measured speed"] = _at_speed_of(step, on_paper(session.layout, works))
    panels["measured, the last step"] = step
    return as_svg(panels, f"{session.run.name}: {session.layout.stages.schedule} on {session.layout.mesh.pipeline} stages")


def _at_speed_of(step: Timeline, predicted: Timeline) -> Timeline:
    """``predicted`` in seconds: all its work takes as long as that of ``step``."""
    factor = _busy(step) / _busy(predicted)
    ranks = (tuple(replace(timed, start=timed.start * factor, end=timed.end * factor) for timed in actions) for actions in predicted.ranks)
    return Timeline(tuple(ranks))


def _busy(timeline: Timeline) -> float:
    return sum(timed.end - timed.start for actions in timeline.ranks for timed in actions)
