"""Stop and go on: bit for bit the run that never stopped, its rows and evaluations each once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from helpers import dml, losses, marked_environment, on_ranks, read, rows, small, started, train, wait_for
from resume_helpers import command, curve, held_out, stop_at, tree_of, weights

import dml_runner

LONG = (
    "train.steps=120",
    "train.global_batch=8",
    "train.eval_every=30",
    "train.eval_batches=2",
    "checkpoint.every=25",
    "checkpoint.keep=9",
)
STEPS = list(range(1, 121))


@pytest.fixture(scope="module", params=[1, 2])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    return request.param, train(tmp_path_factory.mktemp("whole"), *LONG, *on_ranks(request.param))


@pytest.mark.slow
def test_a_run_stopped_twice_ends_as_one_that_never_stopped(whole: tuple[int, Path], tmp_path: Path) -> None:
    ranks, unbroken = whole
    words, folder = small(tmp_path, *LONG, *on_ranks(ranks)), tmp_path / "run"
    first = stop_at(folder, 33, words)
    assert (first.restarts, first.resumed_from, first.eval) == (0, None, None)
    second = stop_at(folder, 70, words)
    assert second.resumed_from == str((folder / f"checkpoints/step-{first.steps:08d}").resolve())
    last = dml_runner.train([str(folder)])
    assert (last.status, last.steps, last.restarts) == ("completed", 120, 2)
    assert last.resumed_from == str((folder / f"checkpoints/step-{second.steps:08d}").resolve())
    assert [read(folder, f"generations/{number}.json")["resume"] for number in range(3)] == [None, second.resumed_from, last.resumed_from]
    assert [row["step"] for row in rows(folder)] == STEPS
    assert curve(folder) == curve(unbroken)
    assert held_out(folder) == held_out(unbroken)
    assert [step for step, _ in held_out(folder)] == [30, 60, 90, 120]
    for step in (25, 50, 75, 100, 120):
        assert weights(folder, step) == weights(unbroken, step)


@pytest.mark.slow
def test_a_completed_run_goes_on_in_a_fork(whole: tuple[int, Path], tmp_path: Path) -> None:
    ranks, unbroken = whole
    short = train(tmp_path, *LONG, *on_ranks(ranks), "train.steps=60", "train.eval_every=null")
    before = tree_of(short)
    summary = dml_runner.train([str(short), "train.steps=120"])
    (fork,) = (tmp_path / "outputs" / "train").iterdir()
    assert (summary.status, summary.steps, summary.restarts) == ("completed", 120, 0)
    assert summary.resumed_from == str((short / "checkpoints/step-00000060").resolve())
    assert curve(fork) == curve(unbroken, after=60)
    assert weights(fork) == weights(unbroken)
    assert tree_of(short) == before


def test_a_killed_command_loses_the_steps_after_the_last_save_only(whole: tuple[int, Path], tmp_path: Path) -> None:
    ranks, unbroken = whole
    words, folder = small(tmp_path, *LONG, *on_ranks(ranks)), tmp_path / "run"
    environment, _ = marked_environment()
    with started("train", *words, env=environment) as process:
        wait_for(lambda: len(rows(folder)) > 55)
        process.send_signal(signal.SIGKILL)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 56, "loss"')
    summary = dml_runner.train(words)
    assert (summary.status, summary.restarts) == ("completed", 1)
    assert summary.resumed_from is None or summary.resumed_from.endswith(("25", "50"))
    assert curve(folder) == curve(unbroken)
    assert held_out(folder) == held_out(unbroken)
    assert weights(folder) == weights(unbroken)


def test_a_command_ends_with_143_and_the_same_words_go_on(tmp_path: Path) -> None:
    """SIGTERM while steps run; then without run=, by name alone."""
    words = [word for word in small(tmp_path, "train.steps=2000", "train.sample_tokens=0", "name=night") if not word.startswith("run=")]
    with started("train", *words, env=dict(os.environ)) as process:
        folder = wait_for(lambda: next((path for path in (tmp_path / "outputs" / "train").glob("*-night") if len(rows(path)) > 20), None))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert read(folder, "summary.json")["status"] == "interrupted"
    done = read(folder, "summary.json")["steps"]
    again = dml("train", *words, "train.steps=" + str(done + 5))
    assert again.returncode == 0, again.stderr
    assert f"continuing {folder} from step {done}" in again.stderr
    assert [row["step"] for row in rows(folder)] == list(range(1, done + 6))
    assert read(folder, "summary.json")["status"] == "completed"
    assert len(losses(folder)) == done + 5


def test_the_end_of_its_hours_is_saved_and_the_same_words_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, folder = small(tmp_path, "train.steps=100000", "checkpoint.every=null", "train.max_hours=0.0004"), tmp_path / "run"
    code, _ = command(capsys, *words)
    summary = read(folder, "summary.json")
    assert (code, summary["status"], summary["eval"]) == (0, "interrupted", None)
    assert summary["steps"] == rows(folder)[-1]["step"] > 0
    assert (folder / "checkpoints" / "latest").resolve().name == f"step-{summary['steps']:08d}"
    code, lines = command(capsys, *words, f"train.steps={summary['steps'] + 3}", "train.max_hours=1")
    assert code == 0, lines
    after = read(folder, "summary.json")
    assert (after["status"], after["steps"]) == ("completed", summary["steps"] + 3)
    assert [row["step"] for row in rows(folder)] == list(range(1, summary["steps"] + 4))
