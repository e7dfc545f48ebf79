"""What is kept of a run and found again: pruning, the best step, evaluations, early stopping, the module."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import evaluations, read, rows, small, train
from resume_helpers import command, curve, held_out, stop_at, tree_of

import dml_runner
from dml_runner.checkpoint.read import open_step
from dml_runner.errors import ConfigError


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[-8:]) for path in (folder / "checkpoints").glob("step-*"))


def state(folder: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = read(folder, f"checkpoints/step-{step:08d}/state.json")["state"]
    return found


def forget_the_end(folder: Path) -> None:
    """As if the command had been killed just before it wrote how the run ended."""
    (folder / "summary.json").unlink()


# --- keep and best -----------------------------------------------------------------------------------------------------------

BEST = ("train.eval_every=5", "checkpoint.best=eval_loss", "checkpoint.every=4", "checkpoint.keep=2", "train.steps=40")


def test_the_newest_and_the_best_stay_over_a_stop(tmp_path: Path) -> None:
    """The rate rises until the loss does: an early step stays the best."""
    words = small(tmp_path, *BEST, "optimizer=sgd", "optimizer.lr=20", "train.clip_norm=1.0", "lr_schedule.warmup_steps=40")
    stop_at(tmp_path / "run", 22, words)
    dml_runner.train(words)
    folder = tmp_path / "run"
    best = min(held_out(folder), key=lambda row: row[1])[0]
    assert best < 30
    assert os.readlink(folder / "checkpoints" / "best") == f"step-{best:08d}"
    assert os.readlink(folder / "checkpoints" / "latest") == "step-00000040"
    assert steps(folder) == [best, 36, 40]
    assert state(folder, 40)["best"] == pytest.approx(dict(held_out(folder))[best])


def test_a_better_last_evaluation_is_the_best_and_stands_once(tmp_path: Path) -> None:
    folder = train(tmp_path, *BEST, "train.steps=12")
    assert os.readlink(folder / "checkpoints" / "best") == "step-00000012"
    forget_the_end(folder)
    assert dml_runner.train([str(folder)]).status == "completed"
    assert [step for step, _ in held_out(folder)] == [5, 10, 12]
    assert os.readlink(folder / "checkpoints" / "best") == "step-00000012"


# --- evaluations -------------------------------------------------------------------------------------------------------------


def test_an_evaluation_that_was_broken_off_is_made_once(tmp_path: Path) -> None:
    """125 held-out batches leave time to stop between the update of step 20 and the end of its evaluation."""
    words = small(tmp_path, "train.steps=30", "train.eval_every=10", "train.micro_batch=1", "train.global_batch=2", "checkpoint.every=20")
    folder = tmp_path / "run"
    stopped = stop_at(folder, 20, words)
    assert stopped.steps == 20
    assert state(folder, 20)["evaluated"] == 10
    assert [step for step, _ in held_out(folder)] == [10]
    dml_runner.train(words)
    assert [step for step, _ in held_out(folder)] == [10, 20, 30]


@pytest.mark.parametrize("every", [3, 6])
def test_a_last_evaluation_before_a_death_is_not_doubled(tmp_path: Path, every: int) -> None:
    folder = train(tmp_path, "train.eval_every=3", f"checkpoint.every={every}")
    before = held_out(folder)
    forget_the_end(folder)
    (folder / "checkpoints" / "step-00000006").rename(tmp_path / "gone")
    dml_runner.train([str(folder)])
    assert held_out(folder) == before
    assert [row["step"] for row in rows(folder)] == list(range(1, 7))


def test_a_fork_holds_no_row_of_its_parents_steps(tmp_path: Path) -> None:
    """Its origin was due for an evaluation that the parent, whose last step it was, made in its own way."""
    parent = train(tmp_path, "train.eval_every=3", "train.eval_batches=1")
    train(tmp_path, "train.eval_every=3", "train.eval_batches=1", "train.steps=9", f"checkpoint.resume={parent}", run="fork")
    assert [row["step"] for row in rows(tmp_path / "fork")] == [7, 8, 9]
    assert [step for step, _ in held_out(tmp_path / "fork")] == [9]


# --- early stopping ----------------------------------------------------------------------------------------------------------

STILL = ("optimizer.lr=1e-12", "train.eval_every=5", "train.stop.metric=eval_loss", "train.stop.patience=4", "train.steps=400")


def test_patience_outlives_a_stop(tmp_path: Path) -> None:
    """Nothing is learned: the first evaluation stays the best, and the fifth ends the run, stopped between or not."""
    unbroken = train(tmp_path, *STILL, run="unbroken")
    assert read(unbroken, "summary.json")["steps"] == 25
    words, folder = small(tmp_path, *STILL), tmp_path / "run"
    stopped = stop_at(folder, 12, words)
    assert stopped.steps < 25
    assert dml_runner.train(words).status == "completed"
    assert read(folder, "summary.json")["steps"] == 25
    assert curve(folder) == curve(unbroken)
    assert held_out(folder) == held_out(unbroken)


def test_a_run_that_stopped_early_does_not_wake_up_again(tmp_path: Path) -> None:
    folder = train(tmp_path, *STILL, "checkpoint.every=5")
    before = held_out(folder)
    assert [step for step, _ in before] == [5, 10, 15, 20, 25]
    forget_the_end(folder)
    summary = dml_runner.train([str(folder)])
    assert (summary.status, summary.steps) == ("completed", 25)
    assert held_out(folder) == before


# --- the module --------------------------------------------------------------------------------------------------------------


def test_the_module_of_a_run_and_of_one_of_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(tmp_path, "checkpoint.every=3", "checkpoint.best=eval_loss", "train.eval_every=2")
    for place, step in ((".", 6), ("checkpoints/latest", 6), ("checkpoints/step-00000003", 3)):
        module, saved = dml_runner.load(folder / place), open_step(folder / "checkpoints" / f"step-{step:08d}")
        assert not module.training
        held = module.state_dict()
        assert {f"model/{name}" for name in held} == {name for name in saved.tensors if name.startswith("model/")}
        assert all(torch.equal(tensor, saved.read(f"model/{name}")) for name, tensor in held.items())
    monkeypatch.chdir(folder / "checkpoints")
    assert torch.equal(dml_runner.load("step-00000003").state_dict()["norm.weight"], held["norm.weight"])
    for wrong in (tmp_path, folder / "checkpoints" / "step-00000005", tmp_path / "none"):
        with pytest.raises(ConfigError) as caught:
            dml_runner.load(wrong)
        assert len(caught.value.problems) == 1


def test_the_module_gives_the_loss_that_was_evaluated(tmp_path: Path) -> None:
    from dml_runner.data.parts.tokens import TokenData
    from dml_runner.job import read_job_file

    folder = train(tmp_path)
    module, data = dml_runner.load(folder), TokenData(read_job_file(folder / "job.yaml").data)
    batch = data.eval_batch(torch.arange(125).numpy())
    with torch.no_grad():
        total, weight = module.loss(module(batch), batch)  # type: ignore[operator]
    assert float(total / weight) == pytest.approx(evaluations(folder)[-1]["eval_loss"], abs=1e-5)


# --- damage, from the command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run saved at steps 2, 4 and 6, and killed then."""
    folder = train(tmp_path_factory.mktemp("saved"), "checkpoint.every=2")
    forget_the_end(folder)
    return folder


@pytest.fixture
def torn(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def flip(folder: Path, step: int, name: str = "rank-00000.safetensors") -> None:
    path = folder / "checkpoints" / f"step-{step:08d}" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_step_is_passed_over_with_a_notice(torn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = curve(torn)
    flip(torn, 6)
    code, lines = command(capsys, str(torn))
    assert code == 0
    assert lines[:2] == [
        "step 6 is damaged: rank-00000.safetensors: SHA-256 differs; using step 4",
        f"continuing {torn} from step 4",
    ]
    assert curve(torn) == before
    open_step(torn / "checkpoints" / "step-00000006")


@pytest.mark.parametrize(
    ("target", "notice"),
    [
        ("step-00000009", "latest points to nothing (step-00000009); using step 6"),
        ("../..", "latest points outside the run's steps ('../..'); using step 6"),
        (None, "latest is missing; using step 6"),
    ],
)
def test_latest_that_leads_nowhere_is_said(torn: Path, capsys: pytest.CaptureFixture[str], target: str | None, notice: str) -> None:
    latest = torn / "checkpoints" / "latest"
    latest.unlink()
    if target is not None:
        latest.symlink_to(target)
    code, lines = command(capsys, str(torn))
    assert (code, lines[:2]) == (0, [notice, f"continuing {torn} from step 6"])


def test_a_run_whose_steps_are_all_damaged_is_refused(torn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(torn, 2, "index.json")
    flip(torn, 4, "state.json")
    (torn / "checkpoints" / "step-00000006" / "manifest.json").write_text("{}")
    before = tree_of(torn / "checkpoints")
    code, lines = command(capsys, str(torn))
    hint = f"no step in {torn / 'checkpoints'} is sound"
    assert (code, len(lines)) == (2, 3)
    for line, start in zip(
        lines, ("step 6 is damaged: manifest.json", "step 4 is damaged: state", "step 2 is damaged: index"), strict=True
    ):
        assert line.startswith(f"checkpoint.resume: {start}")
        assert line.endswith(hint)
    assert tree_of(torn / "checkpoints") == before


def test_a_step_that_was_named_is_never_replaced_by_another(torn: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flip(torn, 4)
    step = torn / "checkpoints" / "step-00000004"
    code, lines = command(capsys, str(torn), f"checkpoint.resume={step}")
    said = "checkpoint.resume: step 4 is damaged: rank-00000.safetensors: SHA-256 differs; name the run folder to use an older step"
    assert (code, lines) == (2, [said])
    assert not (tmp_path / "outputs").exists()
    with pytest.raises(ConfigError, match="step 4 is damaged"):
        dml_runner.load(step)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("job.yaml", "", 2),
        ("job.yaml", "[1, 2]", 2),
        ("job.yaml", "format: 2\nconfig: {}\n", 2),
        ("job.yaml", "format: 1\nid: a\nconfig: []\ndata: {}\nversions: {}\ngit: null\n", 2),
        ("generations/0.json", "", 2),
        ("generations/0.json", "[" * 100_000, 2),
        ("generations/0.json", json.dumps({"number": 0}), 2),
    ],
)
def test_a_run_without_its_papers_is_refused(torn: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, code: int) -> None:
    (torn / name).write_text(content)
    found, lines = command(capsys, str(torn))
    assert (found, len(lines)) == (code, 1), lines
    assert lines[0].startswith(f"{torn / name}: ")


# --- trackers ----------------------------------------------------------------------------------------------------------------


def test_an_offline_tracker_goes_on_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from test_tracking_wandb import records
    from wandb.proto import wandb_internal_pb2 as pb

    monkeypatch.setenv("WANDB_MODE", "offline")
    words = small(tmp_path, "tracker=wandb", "tracker.mode=offline", "checkpoint.every=2")
    dml_runner.train(words)
    forget_the_end(tmp_path / "run")
    dml_runner.train([*words, "train.steps=8"])
    found = []
    for path in sorted((tmp_path / "run" / "tracker").glob("wandb/offline-run-*/run-*.wandb")):
        lines = [pb.Record.FromString(data) for data in records(path)]  # type: ignore[attr-defined]
        ids = {line.run.run_id for line in lines if line.HasField("run")}
        found.append((ids, [line.history.step.num for line in lines if line.HasField("history")]))
    (first, first_steps), (second, second_steps) = found
    assert first == second
    assert len(first) == 1
    assert (first_steps, second_steps) == ([1, 2, 3, 4, 5, 6], [7, 8])
