"""From Python: plan, train and load, in this process where one rank is enough, from any script where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import MARK, alive, marked_environment, on_ranks, read, small, started, train

import dml_runner
from dml_runner.errors import ConfigError
from dml_runner.facts import task_of


def test_plan_never_raises_for_memory(tmp_path: Path) -> None:
    plan = dml_runner.plan(small(tmp_path, "model=gpt3_175b", "hardware.memory_gb=80"))
    assert not plan.fits
    assert plan.parameters == pytest.approx(175e9, rel=0.01)
    assert dml_runner.plan(small(tmp_path)).fits
    assert not (tmp_path / "run").exists()


def test_one_rank_trains_in_the_calling_process(tmp_path: Path) -> None:
    folder = train(tmp_path)
    assert [each["pid"] for each in read(folder, "ranks.json")] == [os.getpid()]
    assert str(os.getpid()) in (folder / "logs" / "rank-0.log").read_text()


def test_one_rank_trains_in_the_process_of_the_command(tmp_path: Path) -> None:
    with started("train", *small(tmp_path), env=dict(os.environ)) as process:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert [each["pid"] for each in read(tmp_path / "run", "ranks.json")] == [process.pid]


def test_all_reduce_on_one_device_is_one_rank_in_this_process(tmp_path: Path) -> None:
    folder = train(tmp_path, *on_ranks(2), "hardware.devices_per_node=1")
    assert [each["pid"] for each in read(folder, "ranks.json")] == [os.getpid()]


def test_train_returns_the_summary_of_the_folder(tmp_path: Path) -> None:
    summary = dml_runner.train(small(tmp_path))
    assert (summary.status, summary.steps) == ("completed", 6)
    assert (summary.final_loss, summary.eval) == tuple(read(tmp_path / "run", "summary.json")[key] for key in ("final_loss", "eval"))


def test_load_gives_the_model_that_was_trained(tmp_path: Path) -> None:
    import numpy as np
    import torch

    from dml_runner import data
    from dml_runner.job import read_job_file

    folder = train(tmp_path, *on_ranks(2), "train.steps=20", "checkpoint.every=10")
    model, job = dml_runner.load(folder), read_job_file(folder / "job.yaml")
    assert not model.training
    batch = data.open_data(job.run.data, task_of(job.run.model), job.data, 1).eval_batch(np.arange(job.data.eval_samples))
    with torch.no_grad():
        total, weight = model.loss(model(batch), batch)  # type: ignore[operator]
    assert float(total / weight) == pytest.approx(read(folder, "summary.json")["eval"]["eval_loss"], abs=1e-5)
    earlier = dml_runner.load(folder / "checkpoints" / "step-00000010")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), earlier.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"job\.yaml"):
        dml_runner.load(tmp_path)


@pytest.mark.slow
def test_a_script_without_a_guard_starts_ranks_that_do_not_run_it_again(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text(f"import dml_runner\nprint('begun')\nprint(dml_runner.train({small(tmp_path, *on_ranks(2))!r}).status)\n")
    environment, mark = marked_environment()
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "begun\ncompleted\n"), done.stderr
    assert len(read(tmp_path / "run", "ranks.json")) == 2
    assert alive(mark) == [], MARK


def test_training_leaves_the_callers_process_as_it_was(tmp_path: Path) -> None:
    import signal
    import threading

    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        return handlers, os.getcwd(), os.sched_getaffinity(0), threading.active_count()

    before = state()
    train(tmp_path)
    assert state() == before
    train(tmp_path, *on_ranks(2), run="both")
    assert state() == before
