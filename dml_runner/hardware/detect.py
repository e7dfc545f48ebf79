"""What this machine has."""

from __future__ import annotations

import os
from pathlib import Path

from dml_runner.errors import PlanError, Problem
from dml_runner.hardware.profile import Profile
from dml_runner.schema.hardware import Hardware

GB = 10**9


def detect(words: Hardware) -> Profile:
    """Complete the hardware words with what is found here.

    Raises:
        PlanError: more GPUs are asked for than one host has.
    """
    gpus = _gpus() if words.name == "auto" else 0
    if gpus:
        return _gpu_profile(words, gpus)
    per_node = words.devices_per_node or 1
    memory = int(words.memory_gb * GB) if words.memory_gb else host_memory_bytes() // (per_node * words.nodes)
    return Profile(words.name, "cpu", "gloo", words.nodes, per_node, memory, bf16=False)


def has_gpus() -> bool:
    """Whether this host has NVIDIA devices, told without importing torch."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _gpus() -> int:
    if not has_gpus():
        return 0
    import torch

    return torch.cuda.device_count()


def _gpu_profile(words: Hardware, gpus: int) -> Profile:
    import torch

    per_node = words.devices_per_node or gpus
    if per_node > gpus:
        raise PlanError(Problem("hardware.devices_per_node", "more than this host has", got=str(per_node), allowed=f"1 to {gpus}"))
    found = torch.cuda.get_device_properties(0)
    memory = int(words.memory_gb * GB) if words.memory_gb else found.total_memory
    return Profile(words.name, "cuda", "nccl", words.nodes, per_node, memory, bf16=found.major >= 8)


def host_memory_bytes() -> int:
    """Memory of this host, or of the control group that bounds this process, in bytes."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        bound = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(bound)) if bound.isdigit() else physical
