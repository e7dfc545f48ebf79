"""What the runner costs, measured on this machine: ``dml bench NAME``. ``loop`` means bench/loop.py."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from dml_runner.errors import ConfigError, Problem, did_you_mean

MEASUREMENTS = (
    "loop",
    "trainer",
    "finetune",
    "parity",
    "memory",
    "comm",
    "links",
    "server",
    "loopback",
    "overlap",
    "ddp",
    "bubble",
    "split",
    "straggler",
    "faults",
)


def run_bench(words: Sequence[str]) -> int:
    """Measure what ``words`` ask for, print the result and return the exit code.

    Raises:
        ConfigError: there is no such measurement, or a word of it is wrong.
    """
    name = words[0] if words else ""
    if name not in MEASUREMENTS:
        got, hint = repr(name) if name else "nothing", did_you_mean(name, MEASUREMENTS)
        raise ConfigError(Problem("bench", "what to measure", got=got, allowed=", ".join(MEASUREMENTS), hint=hint))
    if name == "links" and "--" in words:
        from dml_runner.bench.links_job import run_job

        return run_job(words[1:])
    print(importlib.import_module(f"dml_runner.bench.{name}").measure(words[1:]), end="")
    return 0
