"""Experiment: what the batch rule is worth. `pytest -m slow -s tests/test_run_batch_rule.py`, three minutes on a core.

A GPT of 30,000 parameters on the embedded text, AdamW, a million tokens, cosine to zero. At batch 4 the best of 2e-3, 4e-3 and 8e-3 is
4e-3 (held-out loss 1.685, 1.657, 1.692 with seed 1). Then 8x the batch, an eighth of the steps.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

import dml_runner

SEEDS = (1, 2, 3, 4, 5)
BASE, FACTOR, TOKENS, LENGTH = 4, 8, 1_000_000, 32
CASES = {"base": (BASE, "none"), "8x, no rule": (FACTOR * BASE, "none"), "8x, sqrt": (FACTOR * BASE, "sqrt")}


def held_out_loss(folder: Path, batch: int, rule: str, seed: int) -> float:
    steps = TOKENS // (batch * LENGTH)
    words = [
        "model=gpt_tiny",
        "hardware=cpu",
        f"data.seq_len={LENGTH}",
        f"outputs={folder}",
        "train.sample_tokens=0",
        "checkpoint.every=null",
    ]
    words += ["optimizer.lr=4e-3", "lr_schedule=cosine", "lr_schedule.warmup_steps=50", f"lr_schedule.base_batch={BASE}"]
    words += [
        f"lr_schedule.batch_rule={rule}",
        f"train.global_batch={batch}",
        f"train.steps={steps}",
        f"seed={seed}",
        "train.log_every=1000",
    ]
    evaluation = dml_runner.train([*words, f"run={folder / f'{batch}-{rule}-{seed}'}"]).eval
    assert evaluation is not None
    loss: float = evaluation["eval_loss"]
    return loss


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_rule_closes_most_of_the_gap_that_a_larger_batch_opens(tmp_path: Path) -> None:
    found = {case: [held_out_loss(tmp_path, batch, rule, seed) for seed in SEEDS] for case, (batch, rule) in CASES.items()}
    print("\nheld-out loss  " + "  ".join(f"seed {seed}" for seed in SEEDS) + "    mean")
    for case, losses in found.items():
        print(f"{case:<13}  " + "  ".join(f"{loss:.4f}" for loss in losses) + f"  {statistics.mean(losses):.4f}")
    gap = statistics.mean(found["8x, no rule"]) - statistics.mean(found["base"])
    closed = (statistics.mean(found["8x, no rule"]) - statistics.mean(found["8x, sqrt"])) / gap
    print(f"gap {gap:.4f}, of which the rule closes {closed:.0%}")
    assert gap > 0.05
    assert closed >= 0.5
