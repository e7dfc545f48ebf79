"""A model that needs four times what a device has trains once it is split over four ranks and recomputed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import dml, rows, small

LARGE = ("model=gpt", "model.layers=12", "model.hidden=512", "model.heads=8", "model.context=256", "data.seq_len=256")
SHORT = ("train.steps=3", "train.global_batch=32", "train.eval_batches=1", "checkpoint.every=null")
SPLIT = ("strategy=pipeline", "hardware.devices_per_node=4", "strategy.microbatches=16", "recompute=full")
BUDGET_GB = 0.9


@pytest.mark.slow
def test_a_model_of_four_times_the_budget_trains_on_four_ranks(tmp_path: Path) -> None:
    """What a rank holds is told by how much more its process takes than that of a tiny model at the same layout."""
    budget = f"hardware.memory_gb={BUDGET_GB}"
    whole = dml("train", *small(tmp_path, *LARGE, *SHORT, budget, run="whole"))
    assert whole.returncode == 3
    needed = float(whole.stderr.split("allowed at least ")[1].split(" GB")[0])
    assert needed > 4 * BUDGET_GB
    for name, words in (("split", LARGE), ("tiny", ("model.layers=4",))):
        done = dml("train", *small(tmp_path, *words, *SHORT, *SPLIT, budget, run=name), timeout=300)
        assert done.returncode == 0, done.stderr
    taken = [rows(tmp_path / name)[-1]["memory_bytes"] for name in ("split", "tiny")]
    assert taken[0] - taken[1] < BUDGET_GB * 1e9
