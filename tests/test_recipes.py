"""What the recipes of pre-training say of themselves: by how much they beat guessing by frequency alone. Minutes each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import read

import dml_runner
from dml_runner.job import read_job_file

ROOT = Path(__file__).parent.parent
MARGINS = {"gpt": 1.5, "bert": 1.2, "elmo": 1.2, "rnn": 1.8}
"""Nats, as each recipe's head states."""


def unigram_entropy(run: Path) -> float:
    """Mean cost, in nats, of the held-out tokens of a run by the frequencies of its training tokens, each counted once more."""
    facts = read_job_file(run / "job.yaml").data
    store = Path(facts.store)
    dtype = json.loads((store / "store.json").read_text())["dtype"]
    counts = np.bincount(np.fromfile(store / "train.bin", dtype), minlength=facts.vocabulary) + 1
    return float(-np.log(counts[np.fromfile(store / "eval.bin", dtype)] / counts.sum()).mean())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", MARGINS)
def test_pre_training_beats_frequencies_by_what_the_recipe_states(tmp_path: Path, family: str) -> None:
    run = tmp_path / "run"
    dml_runner.train([str(ROOT / "recipes" / f"{family}_pretrain.yaml"), f"run={run}", f"outputs={tmp_path}"])
    assert f"{MARGINS[family]} below it" in (ROOT / "recipes" / f"{family}_pretrain.yaml").read_text()
    assert read(run, "summary.json")["eval"]["eval_loss"] < unigram_entropy(run) - MARGINS[family]
