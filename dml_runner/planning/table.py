"""A plan as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from dml_runner.hardware.profile import Profile
from dml_runner.planning.close import told
from dml_runner.planning.costs import Work, on_paper
from dml_runner.planning.plan import Plan, bytes_text
from dml_runner.schedules.chart import as_text

DRAWN_RANKS, DRAWN_MICROBATCHES = 8, 16
"""Up to how many ranks and micro-batches a schedule is drawn."""


def render(plan: Plan, profile: Profile) -> str:
    """Lines of ``what   figure``, sizes in GB (10^9 bytes)."""
    layout, batch = plan.layout, plan.layout.batch
    mesh = f"pipeline {layout.mesh.pipeline} x data {layout.mesh.data} x tensor {layout.mesh.tensor}"
    rows = [
        ("strategy", f"{layout.strategy} on engine {layout.engine}, {layout.precision}, {layout.steps:,} steps"),
        ("ranks", f"{plan.world_size} ({mesh}) on {layout.nodes} node(s), {layout.device} over {layout.backend}"),
        ("batch", f"{batch.global_batch} = micro {batch.micro_batch} x accumulation {batch.accumulation} x data ranks {batch.data_ranks}"),
        ("parameters", f"{plan.parameters:,}" + (f" + {plan.head_parameters:,} in the head" if plan.head_parameters else "")),
        *((kind, bytes_text(count)) for kind, count in plan.memory.items()),
        ("memory a device", f"{bytes_text(plan.memory_per_device_bytes)} of {bytes_text(profile.memory_bytes)}"),
        ("fits", "yes" if plan.fits else "no"),
        *_cut(plan),
        *(("note", warning) for warning in plan.warnings),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    return "\n".join([*lines, *_drawn(plan)])


def _cut(plan: Plan) -> Iterator[tuple[str, str]]:
    """Which blocks are where, what they cost, and what each rank holds."""
    recompute = plan.layout.recompute
    if recompute.kept != "none" or recompute.offload:
        yield "recomputed", told(recompute) + (", what is kept waits in host memory" if recompute.offload else "")
    if not plan.stages or plan.layout.stages is None:
        return
    last = len(plan.stages) - 1
    for number, stage in enumerate(plan.stages):
        blocks = f"block {stage.first}" if stage.end == stage.first + 1 else f"blocks {stage.first} to {stage.end - 1}"
        ends = ("stem, " if number == 0 else "") + blocks + (", head" if number == last else "")
        held = f"holds {stage.in_flight} micro-batches of {bytes_text(stage.held_bytes)}"
        yield f"stage {number}", f"rank {stage.rank}: {ends}; {100 * stage.share:.1f} % of the FLOPs; {held}"
    for rank, memory in enumerate(plan.ranks):
        kinds = ", ".join(f"{kind} {bytes_text(count)}" for kind, count in memory.items())
        yield f"rank {rank}", f"{bytes_text(sum(memory.values()))}: {kinds}"
    yield "bubble", f"{100 * plan.bubble:.1f} % idle under {plan.layout.stages.schedule}, by FLOPs alone"


def _drawn(plan: Plan) -> list[str]:
    """The schedule as text, where it has room."""
    if not plan.stages or plan.layout.mesh.pipeline > DRAWN_RANKS or plan.layout.batch.accumulation > DRAWN_MICROBATCHES:
        return []
    works = [Work(stage.forward_flops, stage.backward_flops, stage.weight_flops) for stage in plan.stages]
    return ["", as_text(on_paper(plan.layout, works))]


def headline(name: str, plan: Plan) -> str:
    """A job in one line: what is trained, on what, in which batches."""
    layout, count = plan.layout, plan.parameters
    size = f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
    ranks = "1 rank" if plan.world_size == 1 else f"{plan.world_size} ranks"
    where = f"{layout.strategy} on {ranks} ({layout.device}, {layout.precision})"
    return f"{name}: {size} parameters, {where}, batch {layout.batch.global_batch}, {layout.steps:,} steps"
