"""The loop: how long, at which rate, how bounded, how precise, and when it stops."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from helpers import dml, evaluations, losses, read, rows, small, train

import dml_runner

STEADY = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0")


def rates(folder: Path) -> list[float]:
    return [row["lr"] for row in rows(folder)]


# --- length --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "steps"), [(2, 36), (0.5, 9), (0.001, 1)])
def test_epochs_become_steps(tmp_path: Path, epochs: float, steps: int) -> None:
    """1,124 samples in batches of 64 are 17.6 a pass."""
    folder = train(tmp_path, f"train.epochs={epochs}", "train.global_batch=64")
    assert math.ceil(epochs * 1124 / 64) == steps
    assert read(folder, "summary.json")["steps"] == rows(folder)[-1]["step"] == steps


def test_a_run_stops_early_when_its_metric_no_longer_improves(tmp_path: Path) -> None:
    words = (*STEADY, "optimizer.lr=1e-30", "train.stop.metric=eval_loss", "train.stop.patience=2", "train.eval_every=2")
    folder = train(tmp_path, *words, "train.steps=50")
    assert read(folder, "summary.json")["steps"] == 6, "best at 2; not better at 4 and 6"
    assert [row["step"] for row in evaluations(folder)][:3] == [2, 4, 6]


def test_a_run_that_improves_does_not_stop(tmp_path: Path) -> None:
    folder = train(tmp_path, "train.stop.metric=eval_loss", "train.stop.patience=1", "train.eval_every=4", "train.steps=20")
    found = [row["eval_loss"] for row in evaluations(folder)]
    assert len(found) == 5
    assert found == sorted(found, reverse=True)


def test_eval_batches_bounds_all_evaluations_but_the_last(tmp_path: Path) -> None:
    folder = train(tmp_path, "train.eval_every=2", "train.eval_batches=3", "train.micro_batch=4")
    assert [(row["step"], row["eval_samples"]) for row in evaluations(folder)] == [(2, 12), (4, 12), (6, 125)]


def test_rows_stand_at_every_nth_step_and_at_the_last(tmp_path: Path) -> None:
    assert [row["step"] for row in rows(train(tmp_path, "train.log_every=4"))] == [4, 6]


# --- rate ----------------------------------------------------------------------------------------------------------------


def test_a_constant_rate_after_warm_up(tmp_path: Path) -> None:
    folder = train(tmp_path, "optimizer.lr=0.008", "lr_schedule.warmup_steps=4")
    assert rates(folder) == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.008, 0.008])


def test_linear_falls_to_its_end(tmp_path: Path) -> None:
    folder = train(tmp_path, "optimizer.lr=0.01", "lr_schedule=linear", "lr_schedule.warmup_steps=2", "lr_schedule.final_ratio=0.2")
    assert rates(folder) == pytest.approx([0.005, 0.01, 0.008, 0.006, 0.004, 0.002])


def test_cosine_falls_by_half_in_the_middle(tmp_path: Path) -> None:
    words = ("optimizer.lr=0.01", "lr_schedule=cosine", "lr_schedule.warmup_steps=2", "lr_schedule.final_ratio=0")
    found = rates(train(tmp_path, *words))
    assert found == pytest.approx([0.005, 0.01, 0.01 * (2 + math.sqrt(2)) / 4, 0.005, 0.01 * (2 - math.sqrt(2)) / 4, 0.0])


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_the_batch_rule_scales_the_rate(tmp_path: Path, rule: str, factor: float) -> None:
    words = (f"lr_schedule.batch_rule={rule}", "lr_schedule.base_batch=8", "train.global_batch=32", "train.accumulation=2")
    assert rates(train(tmp_path, "optimizer.lr=0.001", *words)) == pytest.approx([0.001 * factor] * 6)


# --- update --------------------------------------------------------------------------------------------------------------


def test_clipping_bounds_the_update_and_is_told_the_norm_before(tmp_path: Path) -> None:
    """Plain gradient descent at rate 1 moves the weights by the clipped gradient, here from step 1 to step 2."""
    words = (*STEADY, "optimizer.lr=1", "checkpoint.every=1", "train.steps=2")
    moved = {}
    for bound in ("0.01", "null"):
        folder = train(tmp_path, *words, f"train.clip_norm={bound}", run=f"clip-{bound}")
        first, second = (dml_runner.load(folder / "checkpoints" / f"step-0000000{step}") for step in (1, 2))
        pairs = zip(first.parameters(), second.parameters(), strict=True)
        moved[bound] = math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs))
        if bound == "null":
            assert moved[bound] == pytest.approx(rows(folder)[1]["grad_norm"], rel=1e-4)
        else:
            assert rows(folder)[1]["grad_norm"] > 0.1
    assert moved["0.01"] == pytest.approx(0.01, rel=1e-3)
    assert moved["null"] > 0.1


def test_a_gradient_below_the_bound_is_left_alone(tmp_path: Path) -> None:
    free, bound = (train(tmp_path, f"train.clip_norm={norm}", run=f"clip-{norm}") for norm in ("null", "1e6"))
    assert losses(free) == losses(bound)


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    first, again, other = (
        train(tmp_path, "model.dropout=0.1", f"seed={seed}", run=run) for run, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)
    assert losses(first) != losses(train(tmp_path, run="no-dropout"))


# --- precision and speed -------------------------------------------------------------------------------------------------


def test_bf16_stays_near_fp32(tmp_path: Path) -> None:
    full, half = (train(tmp_path, f"train.precision={name}", "train.steps=30", run=name) for name in ("fp32", "bf16"))
    assert losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), rel=0.02)
    assert read(half, "summary.json")["layout"]["precision"] == "bf16"


def test_auto_is_fp32_on_a_processor(tmp_path: Path) -> None:
    assert read(train(tmp_path, "train.precision=auto"), "summary.json")["layout"]["precision"] == "fp32"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling takes a C++ compiler")
def test_a_compiled_model_trains_the_same(tmp_path: Path) -> None:
    """Half a minute of compiling."""
    plain = train(tmp_path, run="plain")
    done = dml("train", *small(tmp_path, "train.compile=true", run="compiled"), timeout=500)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "compiled") == pytest.approx(losses(plain), abs=1e-5)
    assert dml_runner.load(tmp_path / "compiled")


def test_a_language_model_writes_a_sample_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = read(train(tmp_path, "train.sample_tokens=30"), "summary.json")["sample"]
    assert 0 < len(sample) <= 30
    assert sample in capsys.readouterr().err
