"""Sweeps: every trial its own world and folder, one table on top, nothing left running."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest
from helpers import alive, dml, losses, marked_environment, on_ranks, read, small, started, wait_for


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def words(folder: Path, *more: str) -> list[str]:
    return [word for word in small(folder, *more) if not word.startswith("run=")]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_four_trials_of_one_and_two_ranks_with_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from test_tracking_wandb import points

    environment, mark = marked_environment()
    swept = ("strategy=single,all_reduce", "optimizer.lr=1e-3,3e-3", "hardware.devices_per_node=2")
    more = ("tracker=wandb", "tracker.mode=offline", "train.global_batch=8", "train.steps=3", "name=four")
    done = dml("train", *words(tmp_path, *more), "-m", *swept, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "sweeps").glob("*-four")
    assert done.stdout == f"{folder}\n"
    rows = table(folder)
    assert list(rows[0])[:3] == ["trial", "strategy", "optimizer.lr"], "what all trials share is no column"
    assert [(row["strategy"], float(row["optimizer.lr"])) for row in rows] == [
        ("single", 1e-3),
        ("single", 3e-3),
        ("all_reduce", 1e-3),
        ("all_reduce", 3e-3),
    ]
    for row, ranks in zip(rows, (1, 1, 2, 2), strict=True):
        trial = folder / row["trial"]
        assert (row["status"], row["steps"], row["exit_code"]) == ("completed", "3", "0")
        assert len(read(trial, "ranks.json")) == ranks
        assert float(row["final_loss"]) == losses(trial)[-1]
        history, summary, _ = points(trial / "tracker")
        assert [point["_step"] for point in history] == [1, 2, 3]
        assert [point["loss"] for point in history] == losses(trial)
        assert summary["status"] == "completed"
    assert losses(folder / "0") == pytest.approx(losses(folder / "2"), abs=1e-5)
    assert losses(folder / "0")[-1] != losses(folder / "1")[-1]
    assert alive(mark) == []


@pytest.mark.slow
def test_a_trial_that_fails_leaves_the_others_their_turn(tmp_path: Path) -> None:
    done = dml("train", *words(tmp_path, "optimizer=sgd", "optimizer.lr=1e30,0.1", "train.steps=10"), "-m")
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith("1 of 2 trials failed: 0; see ")
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [(row["status"], row["exit_code"]) for row in table(folder)] == [("failed", "6"), ("completed", "0")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_trial_cleanly_and_with_it_the_sweep(tmp_path: Path, number: signal.Signals, code: int) -> None:
    environment, mark = marked_environment()
    with started("train", *words(tmp_path, "train.steps=100000", "seed=1,2"), "-m", env=environment) as process:
        (metrics,) = wait_for(lambda: list(tmp_path.glob("outputs/sweeps/*/0/metrics.jsonl")))
        wait_for(lambda: len(metrics.read_text().splitlines()) > 5)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "stopped in trial 0 of 2" in said.splitlines()[-1]
    assert alive(mark) == []
    summary = read(metrics.parent, "summary.json")
    assert summary["status"] == "interrupted"
    assert (metrics.parent / "checkpoints" / f"step-{summary['steps']:08d}").is_dir()
    assert not (metrics.parent.parent / "1").exists()


def test_trials_do_not_outlive_a_sweep_that_is_killed(tmp_path: Path) -> None:
    environment, mark = marked_environment()
    with started("train", *words(tmp_path, "train.steps=100000", *on_ranks(2)), "seed=1,2", "-m", env=environment) as process:
        wait_for(lambda: list(tmp_path.glob("outputs/sweeps/*/0/metrics.jsonl")))
        process.kill()
    assert alive(mark) == []


@pytest.mark.parametrize("word", ["optimizer.lrr=1,2", "optimizer.lr=1e-3,fast", "strategy=single,allreduce"])
def test_a_wrong_word_in_any_trial_starts_nothing(tmp_path: Path, word: str) -> None:
    done = dml("train", *words(tmp_path, word), "-m")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "outputs").exists()
