"""Profile: the hardware words of a job with nothing left open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """The machine a layout is made for.

    Attributes:
        name: the option that was chosen.
        device: ``cpu`` or ``cuda``.
        backend: what the ranks talk over: ``gloo`` or ``nccl``.
        nodes: hosts.
        devices_per_node: devices, and so worker ranks, on each host.
        memory_bytes: memory of one device.
        bf16: whether matrix products in bf16 are fast enough to be the default.
    """

    name: str
    device: str
    backend: str
    nodes: int
    devices_per_node: int
    memory_bytes: int
    bf16: bool

    @property
    def devices(self) -> int:
        """Devices of all hosts."""
        return self.nodes * self.devices_per_node
