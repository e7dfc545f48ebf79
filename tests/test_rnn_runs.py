"""Whole runs of a recurrent model: the carried state is part of what is saved, and other ranks go on from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import losses, on_ranks, read, rows, train

import dml_runner
from dml_runner.checkpoint.read import open_step
from dml_runner.data.parts.tokenizer import load_tokenizer
from dml_runner.loops.sample import TEMPERATURE
from dml_runner.models.base import keyed_generator
from dml_runner.models.parts.generation import generate

STEPS = ("data.seq_len=null", "model.layers=2", "model.hidden=16", "model.bptt=8", "train.global_batch=12", "train.metrics=[]")
TRAINING = ("train.precision=fp32", "optimizer.lr=1e-2")
CELLS = {"lstm": ("model=rnn", *STEPS, *TRAINING), "gru": ("model=rnn", "model.cell=gru", *STEPS, *TRAINING)}
every_cell = pytest.mark.parametrize("cell", CELLS)


@every_cell
def test_twenty_steps_on_two_ranks_are_those_of_one(tmp_path: Path, cell: str) -> None:
    one, two = (losses(train(tmp_path, *CELLS[cell], *on_ranks(ranks), "train.steps=20", run=f"run-{ranks}")) for ranks in (1, 2))
    assert len(one) == 20
    assert two == pytest.approx(one, abs=1e-4)


@every_cell
def test_the_state_goes_on_where_it_was_saved_on_any_ranks(tmp_path: Path, cell: str) -> None:
    """Ten steps; and five of them on 2 ranks, saved, from which 2 ranks and 1 go on. A state that was lost changes the next loss."""
    words = (*CELLS[cell], "checkpoint.every=5", "checkpoint.keep=9")
    whole = train(tmp_path, *words, *on_ranks(2), "train.steps=10", run="whole")
    half = train(tmp_path, *words, *on_ranks(2), "train.steps=5", run="half")
    step = half / "checkpoints" / "step-00000005"
    parts = 2 if cell == "lstm" else 1
    states = [open_step(each / "checkpoints" / "step-00000005").read("streams/state") for each in (whole, half)]
    assert states[0].shape == states[1].shape == (12, 2, parts, 16)
    assert states[0].flatten().tolist() == pytest.approx(states[1].flatten().tolist(), abs=1e-6)
    assert bool(states[1].any(dim=-1).all()), "every stream has a state in each layer"
    for ranks in (2, 1, 3):
        folder = train(tmp_path, *words, *on_ranks(ranks), "train.steps=10", f"checkpoint.resume={step}", run=f"on-{ranks}")
        assert [row["step"] for row in rows(folder)] == [6, 7, 8, 9, 10]
        assert losses(folder) == pytest.approx(losses(whole)[5:], abs=1e-5)


def test_the_sample_at_the_end_has_the_whole_text_behind_it(tmp_path: Path) -> None:
    """Every token is read once, and the state is never lost, however short ``bptt`` is."""
    folder = train(tmp_path, *CELLS["lstm"], "train.steps=60", "optimizer.lr=0.03", "train.sample_tokens=200", "strategy=single")
    tokenizer, model = load_tokenizer(folder / "tokenizer"), dml_runner.load(folder)
    drawn = keyed_generator(1, "sample")
    prompt = tokenizer.encode("\n")
    written = generate(model, prompt, 200, context=None, vocabulary=tokenizer.size, generator=drawn, temperature=TEMPERATURE)
    assert read(folder, "summary.json")["sample"] == tokenizer.decode(written).strip("\n")
