"""How long, in which batches and with which care the model is trained."""

from __future__ import annotations

from typing import Literal

from dml_runner.schema.base import Count, CountOrZero, Name, Positive, Section


class Stop(Section):
    """Ends a run early when a metric of the held-out data no longer improves."""

    metric: Literal["eval_loss", "eval_accuracy"] | None
    """The metric that is watched; null: never stop early."""
    patience: Count
    """Evaluations without a new best value after which the run ends."""


class Train(Section):
    """Length, batch, precision and rhythm of a run."""

    steps: Count
    """Number of the last update; not read when ``epochs`` is given."""
    epochs: Positive | None
    """Passes over the training data, in place of ``steps``."""
    max_hours: Positive | None
    """Hours after which this start saves and ends; the same words continue it. null: no limit."""
    global_batch: Count | None
    """Samples of one update, over all ranks; = micro_batch x accumulation x data ranks (two of them give the third)."""
    micro_batch: Count | None
    """Samples a rank computes at once."""
    accumulation: Count | None
    """Micro-batches a rank sums before one update."""
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"]
    """Number format of matrix products; weights and optimizer stay fp32. ``auto``: bf16 where the GPU has it, else fp32."""
    clip_norm: Positive | None
    """Longest gradient, as the norm over all parameters; null: no clipping."""
    compile: bool
    """Compile the model with torch.compile (a slower first step, faster ones after)."""
    deterministic: bool
    """Only deterministic kernels on CUDA (a CPU is deterministic anyway); slower."""
    eval_every: Count | None
    """Steps between evaluations; null: only at the end."""
    eval_batches: Count | None
    """Micro-batches a rank evaluates, except at the end, where all are; null: all."""
    log_every: Count
    """Steps between rows of metrics.jsonl."""
    metrics: tuple[Name, ...] | None
    """What evaluations tell beside the loss (``eval_<name>``): accuracy, f1, or those of a plugin; null: accuracy."""
    check_every: Count | None
    """Steps between comparisons of the ranks' weights (a differing rank is named and the run stops); null: never."""
    sample_tokens: CountOrZero
    """Length of the text a language model writes at the end of its run, in tokens; 0: none."""
    stop: Stop
    """Early stopping."""
