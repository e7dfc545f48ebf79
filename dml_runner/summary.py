"""Summary: how a run ended, as summary.json and the Python API tell it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dml_runner.checkpoint.names import step_of
from dml_runner.errors import DmlError, Interrupted, Terminated
from dml_runner.files import write_json
from dml_runner.generation import read_generation_file
from dml_runner.layout import Layout
from dml_runner.run_folder import RunFolder

Status = Literal["completed", "failed", "interrupted"]


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        status: completed, failed or interrupted.
        steps: number of the last update whose result is kept.
        final_loss: loss of the last logged step.
        eval: the whole held-out set's figures, when the run completed.
        layout: how it was executed.
        measured: medians over the steps of the last start: ``step_time_s``, ``samples_per_s``, ``tokens_per_s``, ``memory_bytes``; of a
            pipeline the idle share of its last step, ``bubble``.
        wall_s: seconds from the start of the command that ended the run to its end, its restarts included.
        resumed_from: step folder that the last start continued from; None when it began at 0.
        restarts: starts after the first.
        sample: text the model wrote, where it writes text.
        error: the line the command ended with, when it failed.
    """

    status: Status
    steps: int
    final_loss: float | None
    eval: dict[str, Any] | None
    layout: dict[str, Any]
    measured: dict[str, float]
    wall_s: float
    resumed_from: str | None = None
    restarts: int = 0
    sample: str | None = None
    error: str | None = None

    def write(self, folder: RunFolder) -> None:
        """Write summary.json."""
        write_json(folder.summary, asdict(self))


def measure(layout: Layout, sample_tokens: int, step_times_s: Sequence[float], memory_bytes: int) -> dict[str, float]:
    """The medians of a start, the first step apart where there are more."""
    steady = step_times_s[1:] or step_times_s
    if not steady:
        return {"memory_bytes": memory_bytes}
    step_s = statistics.median(steady)
    samples = layout.batch.global_batch / step_s
    return {"step_time_s": step_s, "samples_per_s": samples, "tokens_per_s": samples * sample_tokens, "memory_bytes": memory_bytes}


def read_summary(folder: RunFolder) -> Summary | None:
    """The summary a run folder holds, or None."""
    content = folder.read_summary()
    return None if content is None else Summary(**content)


def failed(folder: RunFolder, layout: Layout, wall_s: float, error: DmlError) -> Summary:
    """Write and return the summary of a run whose ranks could not write it themselves."""
    last = folder.next_generation() - 1
    resume = read_generation_file(folder.generation(last)).resume
    summary = Summary(
        status="interrupted" if isinstance(error, Interrupted | Terminated) else "failed",
        steps=folder.last_step() or (step_of(Path(resume).name) or 0 if resume else 0),
        final_loss=None,
        eval=None,
        layout=asdict(layout),
        measured={},
        wall_s=wall_s,
        resumed_from=resume,
        restarts=last,
        error=str(error),
    )
    summary.write(folder)
    return summary
