"""The learning rate of a step."""

from __future__ import annotations

import math

from dml_runner.schema.lr_schedule import Constant, Decay, LrSchedule


def batch_factor(words: LrSchedule, global_batch: int) -> float:
    """What the batch rule multiplies the rate by: 1, B / base, or sqrt(B / base)."""
    if words.batch_rule == "none" or words.base_batch is None:
        return 1.0
    ratio = global_batch / words.base_batch
    return ratio if words.batch_rule == "linear" else math.sqrt(ratio)


def learning_rate(words: LrSchedule, peak: float, step: int, last_step: int) -> float:
    """Rate of update ``step`` (1-based): a linear rise to ``peak`` over the warm-up, then the schedule's fall.

    The rise ends, at ``peak``, with step ``warmup_steps``; the fall ends, at ``final_ratio x peak``, with ``last_step``.
    """
    if step <= words.warmup_steps:
        return peak * step / words.warmup_steps
    if isinstance(words, Constant) and not isinstance(words, Decay):
        return peak
    done = min(1.0, (step - words.warmup_steps) / max(1, last_step - words.warmup_steps))
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if words.name == "cosine" else 1.0 - done
    return peak * (words.final_ratio + (1.0 - words.final_ratio) * left)
