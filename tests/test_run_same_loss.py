"""Same job, any number of ranks, any division of its batch: the same losses, in training and on the held-out set."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import evaluations, losses, on_ranks, read, train

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("alone"), *FIFTY_STEPS, "strategy=single")


FIFTY_STEPS = (
    "optimizer=adamw",
    "optimizer.lr=1e-3",
    "train.steps=50",
    "train.global_batch=8",
    "train.eval_every=25",
    "train.precision=fp32",
)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_reduce_has_the_losses_of_one_process(alone: Path, tmp_path: Path, ranks: int) -> None:
    together = train(tmp_path, *FIFTY_STEPS, *on_ranks(ranks))
    assert [each["rank"] for each in read(together, "ranks.json")] == list(range(ranks))
    assert len(losses(alone)) == 50
    assert losses(alone)[-1] < losses(alone)[0] - 0.5
    assert losses(together) == pytest.approx(losses(alone), abs=TOLERANCE)
    for ours, theirs in zip(evaluations(together), evaluations(alone), strict=True):
        assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], abs=TOLERANCE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = train(tmp_path_factory.mktemp("whole"), "train.global_batch=64", "train.steps=3", "strategy=single")
    assert read(folder, "summary.json")["layout"]["batch"]["micro_batch"] == 64
    return losses(folder)


FACTORS = [(ranks, micro) for ranks in (1, 2, 4) for micro in (64, 32, 16, 8, 4, 2, 1) if micro * ranks <= 64]
USUAL = ((1, 64), (1, 8), (1, 1), (2, 32), (2, 4), (4, 16), (4, 2))


@pytest.mark.parametrize(("ranks", "micro"), [pytest.param(*f, marks=() if f in USUAL else pytest.mark.slow) for f in FACTORS])
def test_every_division_of_a_batch_has_the_same_losses(whole: list[float], tmp_path: Path, ranks: int, micro: int) -> None:
    folder = train(
        tmp_path, *on_ranks(ranks), "train.global_batch=64", f"train.micro_batch={micro}", "train.steps=3", "train.eval_batches=1"
    )
    batch = read(folder, "summary.json")["layout"]["batch"]
    assert batch == {"global_batch": 64, "micro_batch": micro, "accumulation": 64 // micro // ranks, "data_ranks": ranks}
    assert losses(folder) == pytest.approx(whole, abs=TOLERANCE)


def test_evaluation_counts_every_held_out_sample_once_on_any_number_of_ranks(tmp_path: Path) -> None:
    """125 samples, the last of them padded, in batches of 4: no number of ranks divides them."""
    found = [
        train(tmp_path, *on_ranks(ranks), "train.global_batch=12", "train.micro_batch=4", "train.steps=1", run=f"on-{ranks}")
        for ranks in (1, 3)
    ]
    found.append(train(tmp_path, *on_ranks(2), "train.global_batch=12", "train.micro_batch=2", "train.steps=1", run="on-2"))
    (alone, *others) = [read(folder, "summary.json")["eval"] for folder in found]
    assert alone["eval_samples"] == 125
    for other in others:
        assert other["eval_samples"] == 125
        assert other["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-6)
