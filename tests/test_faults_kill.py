"""A rank dies, stands still or leaves: it is named, all start again from the last save, and the run ends as if nothing had been."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from faults import EVERY, STEPS, last_step, meanwhile, misbehave, strike, toy, train, untouched, wait_for_step
from helpers import read

from dml_runner.bench.faults_evidence import evidence, story
from dml_runner.launch.restarts import Restarts


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run of 2 ranks that nobody disturbs leaves."""
    return untouched(tmp_path_factory, 2)


@pytest.mark.parametrize("draw", [1, *(pytest.param(draw, marks=pytest.mark.slow) for draw in (2, 3))])
def test_a_killed_rank_leaves_no_trace_in_weights_or_metrics(tmp_path: Path, alone: dict[str, str], draw: int) -> None:
    dice = random.Random(draw)
    run = tmp_path / "run"
    with meanwhile(strike(run, dice.randrange(1, STEPS // 2), dice.randrange(2), signal.SIGKILL)):
        assert train(toy(tmp_path, 2)) == 0
    assert evidence(run) == alone
    summary = read(run, "summary.json")
    assert (summary["status"], summary["restarts"]) == ("completed", 1)
    assert {each["generation"] for each in read(run, "ranks.json")} == {1}


@pytest.mark.slow
def test_a_killed_rank_of_four_leaves_no_trace_either(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path / "run"
    with meanwhile(strike(run, 25, 2, signal.SIGKILL)):
        assert train(toy(tmp_path, 4, "train.steps=60")) == 0
    assert evidence(run) == untouched(tmp_path_factory, 4, "train.steps=60")


def test_who_died_is_named_and_nothing_is_saved_for_it(tmp_path: Path, alone: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"

    def act() -> None:
        strike(run, EVERY + 10, 1, signal.SIGKILL)()
        wait_for_step(run, 1, generation=1)

    with meanwhile(act):
        assert train(toy(tmp_path, 2, "checkpoint.keep=100")) == 0
    assert "rank 1 was killed by SIGKILL at step" in capsys.readouterr().err
    saved = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")]
    assert sorted(saved) == list(range(EVERY, STEPS + 1, EVERY)), "SIGTERM to the survivors would have saved another step"
    assert evidence(run) == alone


def test_a_rank_killed_before_anything_was_saved_starts_from_the_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], alone: dict[str, str]
) -> None:
    run = tmp_path / "run"
    with meanwhile(strike(run, 3, 0, signal.SIGKILL)):
        assert train(toy(tmp_path, 2, "checkpoint.every=null")) == 0
    assert "starting again from step 0" in capsys.readouterr().err
    assert evidence(run) == alone


@pytest.mark.slow
def test_a_fork_killed_before_its_first_save_goes_back_to_its_parents_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(toy(tmp_path, 2, "train.steps=20", "train.eval_every=null")) == 0
    more = [f"checkpoint.resume={tmp_path / 'run'}", "checkpoint.every=null", "train.eval_every=null", "train.steps=100"]
    assert train(toy(tmp_path, 2, *more, run="alone")) == 0
    capsys.readouterr()
    with meanwhile(strike(tmp_path / "fork", 40, 1, signal.SIGKILL)):
        assert train(toy(tmp_path, 2, *more, run="fork")) == 0
    assert "starting again from step 20" in capsys.readouterr().err
    assert evidence(tmp_path / "fork") == evidence(tmp_path / "alone")
    assert story(tmp_path / "fork")[0]["step"] == 21


def test_a_frozen_rank_is_named_and_replaced_in_time(tmp_path: Path, alone: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with meanwhile(strike(run, 60, 1, signal.SIGSTOP)):
        assert train(toy(tmp_path, 2)) == 0
    said = capsys.readouterr().err
    assert "rank 1 is frozen: no progress for 2." in said, said
    assert evidence(run) == alone


@pytest.mark.slow
def test_a_rank_that_stands_still_in_python_is_named_with_its_stack(
    tmp_path: Path, alone: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, tmp_path, rank=1, step=40, act="stand still")
    assert train(toy(tmp_path, 2)) == 0
    said = capsys.readouterr().err
    assert "rank 1 hangs: no progress for" in said, said
    assert 'faults.py", line' in said
    assert "in stand_still" in said
    assert evidence(tmp_path / "run") == alone


@pytest.mark.slow
def test_a_rank_that_leaves_early_without_an_error_is_a_failure(
    tmp_path: Path, alone: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, tmp_path, rank=0, step=60, act="leave")
    assert train(toy(tmp_path, 2)) == 0
    assert "rank 0 left at step 60 without an error" in capsys.readouterr().err
    assert evidence(tmp_path / "run") == alone


def test_a_crash_loop_ends_with_a_verdict_and_the_first_ranks_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, tmp_path, rank=1, step=EVERY + 5, act="fail", always=True)
    assert train(toy(tmp_path, 2, "checkpoint.every=null")) == 5
    said = capsys.readouterr().err.splitlines()
    verdict = next(line for line in said if "crash loop" in line)
    assert verdict.startswith("ValueError: a row that cannot be; a crash loop: 3 failures in a row in step 25")
    run = tmp_path / "run"
    assert len(list((run / "generations").glob("*.json"))) == 3, "2 restarts"
    assert read(run, "summary.json")["status"] == "failed"
    assert "Traceback" in (run / "logs" / "rank-1.log").read_text()
    assert last_step(run) == EVERY + 4


def test_failures_at_other_steps_are_no_crash_loop_until_there_are_ten() -> None:
    restarts = Restarts()
    assert all(restarts.judge(failed_at=step, committed=0) is None for step in (0, 0, 5, 5, 7, 7, 9, 9, 11))
    assert "10 failures in a row" in str(restarts.judge(failed_at=12, committed=0))
    assert restarts.judge(failed_at=12, committed=10) is None, "a save is progress"
    assert restarts.judge(failed_at=12, committed=10) is None
    assert "3 failures in a row in step 12" in str(restarts.judge(failed_at=12, committed=10))


def test_a_rank_that_does_not_know_how_to_leave_does_not_keep_the_run_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    misbehave(monkeypatch, tmp_path, rank=1, step=10, act="never leave")
    assert train(toy(tmp_path, 2, "train.steps=20")) == 0
    assert read(tmp_path / "run", "summary.json")["restarts"] == 0
