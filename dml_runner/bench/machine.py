"""Where a figure was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch


def machine() -> dict[str, str | int]:
    """Python, torch, processor, cores this process may use, and threads torch uses."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }


def told(here: Mapping[str, str | int], threads: bool = False, more: str = "") -> str:
    """A machine in one line, with torch's threads where they matter, and ``more`` behind its cores."""
    used = f", {here['threads']} thread(s)" if threads else ""
    return f"{here['cpu']}, {here['cores']} cores{used}{more}; python {here['python']}, torch {here['torch']}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
