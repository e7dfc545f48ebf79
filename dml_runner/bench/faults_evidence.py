"""What two runs must have in common to count as the same: their tensors, bit for bit, and their metrics."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from dml_runner.checkpoint.read import open_step
from dml_runner.run_folder import RunFolder
from dml_runner.tracking import jsonl

EXACT = ("step", "loss", "lr", "grad_norm", "comm_bytes", "eval_loss", "eval_samples")
"""What depends on the job alone; the other columns are times."""


def fingerprint(step: Path) -> str:
    """SHA-256 over name, format, shape and bytes of every tensor of a step folder, whichever file holds it.

    Raises:
        ConfigError: the step is damaged.
    """
    committed, hasher = open_step(step), hashlib.sha256()
    for name in sorted(committed.tensors):
        shape, dtype = committed.tensors[name]
        hasher.update(f"{name} {dtype} {list(shape)}\n".encode())
        hasher.update(committed.read(name).reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def story(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl without their times."""
    return [{key: row[key] for key in EXACT if key in row} for row in jsonl.read(RunFolder(run).metrics)]


def evidence(run: Path) -> dict[str, str]:
    """``weights``: digest of the newest step's tensors; ``metrics``: digest of the rows without times. Equal for equal runs."""
    rows = "\n".join(map(repr, story(run)))
    return {"weights": fingerprint(RunFolder(run).checkpoints / "latest"), "metrics": hashlib.sha256(rows.encode()).hexdigest()}
