"""Runs that begin with the weights of another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import dml, evaluations, on_ranks, read, small, train
from publishing import ALLOWED, CLASSIFIER, SHAPES, checked, made, publish, refused
from resume_helpers import command, stop_at

import dml_runner
from dml_runner.engines.pretrained import load_pretrained
from dml_runner.job import read_job_file
from dml_runner.launch.prepare import next_generation, plan_job
from dml_runner.run_folder import RunFolder


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours."""
    return train(tmp_path_factory.mktemp("origin"), "optimizer.lr=1e-2")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_begins_with_the_weights_of_another(origin: Path, tmp_path: Path, ranks: int) -> None:
    """Of its newest step, which is written down: a rate of zero keeps its held-out loss."""
    held = ("optimizer.lr=1e-30", "train.steps=1", "train.precision=fp32")
    folder = train(tmp_path, f"model.pretrained={origin}", "optimizer.weight_decay=0", *held, *on_ranks(ranks))
    assert evaluations(folder)[-1]["eval_loss"] == pytest.approx(evaluations(origin)[-1]["eval_loss"], abs=1e-6)
    start = read(folder, "generations/0.json")
    assert start["pretrained"] == str(origin / "checkpoints" / "step-00000006")
    assert start["plan"]["warnings"][-1] == f"weights from {origin / 'checkpoints' / 'step-00000006'}"


def test_another_shape_than_the_runs_is_refused_before_a_folder_is_made(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = small(tmp_path, f"model.pretrained={origin}", "model.hidden=64", "model.heads=4")
    code, said = command(capsys, *words)
    differs = "differs from that of the weights it starts from"
    assert code == 2
    assert set(said[:2]) == {f"model.heads: {differs}; got 4; set model.heads=2", f"model.hidden: {differs}; got 64; set model.hidden=32"}
    assert "model.pretrained: tokens.weight has another shape; got 86 x 32; allowed 86 x 64" in said
    assert not (tmp_path / "run").exists()
    planned = dml("plan", *words)
    assert (planned.returncode, planned.stderr.splitlines()) == (2, said)


def test_runs_of_other_families_and_without_a_step_are_refused(origin: Path, tmp_path: Path) -> None:
    assert refused(origin, *SHAPES["bert"]) == [
        f"model.pretrained: weights of another kind of model; got {origin / 'checkpoints' / 'step-00000006'}: gpt; allowed bert"
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(origin / "job.yaml", empty)
    assert refused(empty, *SHAPES["gpt"]) == [f"model.pretrained: no step was saved there; got {empty}"]


def test_deeper_runs_and_other_heads(origin: Path) -> None:
    vocabulary = ("model.vocab_size=86",)
    assert checked(origin, *SHAPES["gpt"], *vocabulary, *CLASSIFIER).endswith("; what they lack starts anew: classifier.weight")
    said = refused(origin, *SHAPES["gpt"], *vocabulary, "model.layers=1")
    assert said[0] == "model.layers: differs from that of the weights it starts from; got 1; set model.layers=2"


def test_of_families_that_nobody_publishes_all_behind_the_blocks_is_head(tmp_path: Path) -> None:
    words = ("model=rnn", "model.hidden=16", "model.bptt=16")
    folder = train(tmp_path, *words, "train.steps=1")
    said = checked(folder, *words, "model.vocab_size=86", *CLASSIFIER)
    assert said.startswith(f"weights from {folder / 'checkpoints' / 'step-00000001'}; what they lack starts anew: classifier.")
    model = made(*words, "model.vocab_size=86", *CLASSIFIER)
    anew = load_pretrained(model, str(folder))
    trained = dml_runner.load(folder).state_dict()
    assert all(torch.equal(model.state_dict()[name], trained[name]) for name in set(model.state_dict()) - set(anew))
    published = publish(tmp_path / "weights", made(*SHAPES["gpt"]))
    assert refused(published, *words) == ["model.pretrained: nobody publishes weights of such a model; allowed a run folder of ours"]


def test_a_start_after_a_failure_reads_the_same_weights(origin: Path, tmp_path: Path) -> None:
    folder = train(tmp_path, f"model.pretrained={origin}", "train.steps=1")
    plan, _ = plan_job(read_job_file(folder / "job.yaml").run)
    again = next_generation(RunFolder(folder), plan.layout, plan, 0.0, None)
    assert again.pretrained == read(folder, "generations/0.json")["pretrained"] is not None


def test_a_run_goes_on_without_the_weights_it_began_with(origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(origin, weights, symlinks=True)
    words = small(tmp_path, f"model.pretrained={weights}", "train.steps=400", "checkpoint.every=5")
    stop_at(tmp_path / "run", 10, words)
    shutil.rmtree(weights)
    assert dml_runner.train([str(tmp_path / "run"), "train.steps=200"]).status == "completed"
    assert read(tmp_path / "run", "generations/1.json")["pretrained"] is None
    assert command(capsys, *words, f"run={tmp_path / 'other'}") == (2, [f"model.pretrained: no weights there; got {weights}; {ALLOWED}"])
