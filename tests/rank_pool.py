"""What tests of strategies share: small jobs for the processes of bench/pool.py."""

from __future__ import annotations

from pathlib import Path

from helpers import small

from dml_runner.bench.pool import Job, Ranks, Trained, job_of, ranks

__all__ = ["FIFTY", "Job", "Ranks", "Trained", "job", "ranks"]

FIFTY = ("train.steps=50", "train.global_batch=12", "optimizer.lr=1e-3", "train.precision=fp32")
"""The demand: fifty steps of which every loss is compared."""


def job(folder: Path, *words: str, save: Path | None = None, resume: Path | None = None) -> Job:
    """The small job of ``words``, its text under ``folder`` unless they name other data."""
    ready = ["hardware=cpu", "train.sample_tokens=0", "train.log_every=1", f"outputs={folder}", *words]
    return job_of(ready if "data=digits" in words else small(folder, *words), folder / "cache", save, resume)
