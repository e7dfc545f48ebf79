"""The machine the job runs on."""

from __future__ import annotations

from typing import Literal

from dml_runner.schema.base import Count, Positive, Section


class Hardware(Section):
    """How many devices there are, of which kind, and what each holds."""

    name: Literal["cpu", "auto"]
    """``cpu``: this machine's processor; ``auto``: its GPUs where it has some, else its processor."""
    nodes: Count
    """Hosts."""
    devices_per_node: Count | None
    """Devices, and so worker ranks, on each host; null: as many as the machine has (GPUs; one for a CPU)."""
    memory_gb: Positive | None
    """Memory of one device, in GB (10^9 bytes); null: what this machine has, a host's shared equally by its ranks."""
