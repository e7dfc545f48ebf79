"""A plan as a table for people."""

from __future__ import annotations

from dml_runner.hardware.profile import Profile
from dml_runner.planning.plan import Plan, bytes_text


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
        *(("note", warning) for warning in plan.warnings),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def headline(name: str, plan: Plan) -> str:
    """A job in one line: what is trained, on what, in which batches."""
    layout, count = plan.layout, plan.parameters
    size = f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
    ranks = "1 rank" if plan.world_size == 1 else f"{plan.world_size} ranks"
    where = f"{layout.strategy} on {ranks} ({layout.device}, {layout.precision})"
    return f"{name}: {size} parameters, {where}, batch {layout.batch.global_batch}, {layout.steps:,} steps"
