"""Batches made ahead of their step: in order, with their errors, and hidden behind a step that computes longer."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from helpers import losses, on_ranks, rows, train

from dml_runner.data.parts.tokens import TokenData
from dml_runner.engines.torch_engine import TorchEngine
from dml_runner.loops.prefetch import Prefetch


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_come_in_their_order_and_none_past_the_last(workers: int) -> None:
    asked: list[int] = []
    prefetch = Prefetch(lambda step: asked.append(step) or step, workers, last=9)  # type: ignore[func-returns-value]
    assert [prefetch.take(step) for step in range(4, 10)] == list(range(4, 10))
    prefetch.close()
    assert sorted(asked) == list(range(4, 10))


def test_what_a_worker_failed_with_is_raised_at_its_step() -> None:
    def fetch(step: int) -> int:
        if step == 3:
            raise ValueError("a row that cannot be")
        return step

    prefetch = Prefetch(fetch, 2, last=9)
    assert [prefetch.take(step) for step in (1, 2)] == [1, 2]
    with pytest.raises(ValueError, match="a row that cannot be"):
        prefetch.take(3)
    prefetch.close()


def test_closing_leaves_no_thread_behind() -> None:
    prefetch = Prefetch(lambda step: step, 2, last=1000)
    prefetch.take(1)
    prefetch.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("data") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def slowed(monkeypatch: pytest.MonkeyPatch, batch_s: float, step_s: float) -> None:
    """Have every batch take ``batch_s`` seconds more, and every update ``step_s``."""
    fetch, step = TokenData.train_batch, TorchEngine.step

    def slow_fetch(self: TokenData, picks: np.ndarray) -> Any:
        time.sleep(batch_s)
        return fetch(self, picks)

    def slow_step(self: TorchEngine, *arguments: Any) -> Any:
        time.sleep(step_s)
        return step(self, *arguments)

    monkeypatch.setattr(TokenData, "train_batch", slow_fetch)
    monkeypatch.setattr(TorchEngine, "step", slow_step)


def waits(folder: Path, *words: str, run: str = "run") -> tuple[float, float]:
    """(seconds of a step, share of them spent waiting for data), the medians over the rows of a run."""
    late = [row for row in rows(train(folder, "train.steps=24", *words, run=run)) if row["step"] > 4 and "loss" in row]
    return median(row["step_time_s"] for row in late), median(row["data_wait_s"] / row["step_time_s"] for row in late)


def test_a_slow_loader_shows_its_true_share_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, batch_s=0.06, step_s=0.04)
    step_s, share = waits(tmp_path, "data.workers=0")
    assert share == pytest.approx(0.06 / step_s, rel=0.1)


def test_prefetch_hides_a_loader_that_is_faster_than_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, batch_s=0.04, step_s=0.06)
    step_s, share = waits(tmp_path, "data.workers=1")
    assert step_s < 0.06 + 0.04
    assert share < 0.1


def test_two_workers_halve_the_wait_for_a_loader_that_is_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, batch_s=0.08, step_s=0.001)
    one, two = (waits(tmp_path, f"data.workers={workers}", run=f"run-{workers}")[0] for workers in (1, 2))
    assert two == pytest.approx(one / 2, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_workers_change_nothing_but_the_time(tmp_path: Path, ranks: int) -> None:
    found = [losses(train(tmp_path, f"data.workers={workers}", *on_ranks(ranks), run=f"run-{workers}")) for workers in (0, 1, 3)]
    assert found[0] == found[1] == found[2]
