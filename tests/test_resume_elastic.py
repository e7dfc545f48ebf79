"""The same run on another number of ranks: the same samples in the same order, the same losses, the same global batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import losses, on_ranks, read, rows, small, train
from resume_helpers import command, held_out, stop_at

import dml_runner
from dml_runner.data.parts.order import SampleOrder, slice_of

TOLERANCE = 1e-5
STEPS = ("train.steps=60", "optimizer.lr=1e-3", "train.precision=fp32", "train.eval_every=20", "checkpoint.every=6", "checkpoint.keep=99")


def batch_of(folder: Path, generation: int) -> tuple[int, int, int, int]:
    """global = micro x accumulation x data ranks, at one start of a run."""
    batch = read(folder, f"generations/{generation}.json")["layout"]["batch"]
    return batch["global_batch"], batch["micro_batch"], batch["accumulation"], batch["data_ranks"]


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 samples a step on 2 ranks, never stopped."""
    return train(tmp_path_factory.mktemp("steady"), *STEPS, *on_ranks(2), "train.global_batch=12")


def test_from_2_ranks_to_1_to_3_and_back(steady: Path, tmp_path: Path) -> None:
    """The same words but for the ranks; global batch 12 = 6 x 1 x 2, typed once as a micro-batch, is kept."""
    words, folder = small(tmp_path, *STEPS, "train.micro_batch=6"), tmp_path / "run"
    stop_at(folder, 8, [*words, *on_ranks(2)])
    stop_at(folder, 20, [*words, *on_ranks(1)])
    stop_at(folder, 34, [*words, *on_ranks(3)])
    assert dml_runner.train([str(folder), *on_ranks(2)]).status == "completed"
    assert [batch_of(folder, start) for start in range(4)] == [(12, 6, 1, 2), (12, 6, 2, 1), (12, 4, 1, 3), (12, 6, 1, 2)]
    assert [row["step"] for row in rows(folder)] == list(range(1, 61))
    assert losses(folder) == pytest.approx(losses(steady), abs=TOLERANCE)
    assert [step for step, _ in held_out(folder)] == [20, 40, 60]
    assert [loss for _, loss in held_out(folder)] == pytest.approx([loss for _, loss in held_out(steady)], abs=TOLERANCE)


@pytest.mark.parametrize(("ranks", "micro", "batch"), [(4, None, (12, 3, 1, 4)), (3, 3, (12, 2, 2, 3)), (1, 5, (12, 4, 3, 1))])
def test_a_step_of_2_ranks_goes_on_on_any_other(
    steady: Path, tmp_path: Path, ranks: int, micro: int | None, batch: tuple[int, ...]
) -> None:
    """A fork of step 48; a typed micro-batch is an upper bound."""
    bound = [] if micro is None else [f"train.micro_batch={micro}"]
    step = steady / "checkpoints" / "step-00000048"
    folder = train(tmp_path, *STEPS, *on_ranks(ranks), *bound, f"data.path={steady.parent / 'text-20000.txt'}", f"checkpoint.resume={step}")
    assert batch_of(folder, 0) == batch
    assert [row["step"] for row in rows(folder)] == list(range(49, 61))
    assert losses(folder) == pytest.approx(losses(steady)[48:], abs=TOLERANCE)


def test_ranks_that_do_not_divide_the_batch_are_refused(steady: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = f"checkpoint.resume={steady / 'checkpoints' / 'step-00000048'}"
    words = small(tmp_path, *STEPS, *on_ranks(5), f"data.path={steady.parent / 'text-20000.txt'}", origin)
    code, lines = command(capsys, *words)
    hint = "the first start fixed it; data ranks that divide it: 1, 2, 3, 4, 6, 12"
    assert (code, lines) == (3, [f"train.global_batch: data ranks 5 = 5 does not divide it; got 12; {hint}"])
    assert not (tmp_path / "run").exists()


def test_every_sample_is_seen_once_whatever_the_ranks_of_each_start() -> None:
    """Three starts on 2, 1 and 3 ranks, in the middle of an epoch each, read the epoch's samples in one order."""
    order, seen = SampleOrder(samples=120, seed=5), []
    for number in range(1, 11):
        ranks = 2 if number < 4 else 1 if number < 8 else 3
        parts = [slice_of(order.step(number, 12), rank, ranks, 2, 12 // ranks // 2) for rank in range(ranks)]
        seen += [pick for micro in zip(*parts, strict=True) for batch in micro for pick in batch.tolist()]
    assert seen == np.concatenate([order.step(number, 12) for number in range(1, 11)]).tolist()
    assert sorted(seen) == [[sample, 0] for sample in range(120)]


def test_a_global_batch_that_stays_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = small(tmp_path, "train.steps=3")
    train(tmp_path, "train.steps=3", "train.micro_batch=4")
    (tmp_path / "run" / "summary.json").unlink()
    code, lines = command(capsys, *words, "train.micro_batch=2")
    assert code == 0
    assert "the global batch stays 4: micro-batch 2 x accumulation 2 x data ranks 1" in lines
