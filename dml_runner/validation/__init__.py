"""From a tree of plain values to a Run: every problem at once, in the words of the job."""

from __future__ import annotations

from dml_runner.validation.problems import run_or_problems, unknown_keys, validate
from dml_runner.validation.references import Resolved, resolve, restore

__all__ = ["Resolved", "resolve", "restore", "run_or_problems", "unknown_keys", "validate"]
