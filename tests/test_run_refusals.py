"""What cannot be laid out is refused before anything starts, with the arithmetic and what would do."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from helpers import on_ranks, small, write_text
from hypothesis import given
from hypothesis import strategies as st

from dml_runner import cli
from dml_runner.errors import PlanError
from dml_runner.layout import divide_batch

COUNTS = st.integers(1, 64)

PRODUCT = "micro_batch 4 x accumulation 2 x data ranks 2 = 16; got 32; allowed 16; leave one of the three out"
RANKS = "data ranks 4 = 4 does not divide it; got 30; allowed a multiple of 4; the nearest that works is 28"
MICRO = "data ranks 2 x micro_batch 8 = 16 does not divide it; got 40; allowed a multiple of 16; the nearest that works is 32"
TIMES = "data ranks 1 x accumulation 3 = 3 does not divide it; got 8; allowed a multiple of 3; the nearest that works is 9"
ABOVE = "data ranks 4 = 4 does not divide it; got 3; allowed a multiple of 4; the nearest that works is 4"
FP16 = "train.precision: the torch engine has no loss scaling yet; got fp16; allowed fp32, tf32, bf16"
TF32 = "train.precision: only NVIDIA GPUs since Ampere compute in tf32; got tf32 on a CPU; allowed fp32, bf16"


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize(
    ("ranks", "words", "line"),
    [
        (2, "train.global_batch=32 train.micro_batch=4 train.accumulation=2", f"train.global_batch: {PRODUCT}"),
        (4, "train.global_batch=30", f"train.global_batch: {RANKS}"),
        (2, "train.global_batch=40 train.micro_batch=8", f"train.global_batch: {MICRO}"),
        (1, "train.global_batch=8 train.accumulation=3", f"train.global_batch: {TIMES}"),
        (4, "train.global_batch=3", f"train.global_batch: {ABOVE}"),
        (1, "train.precision=fp16", FP16),
        (1, "train.precision=tf32", TF32),
    ],
)
def test_a_contradiction(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, ranks: int, words: str, line: str) -> None:
    assert cli.main([verb, *small(tmp_path, *on_ranks(ranks), *words.split())]) == 3
    assert capsys.readouterr() == ("", f"{line}\n")
    assert not (tmp_path / "run").exists()


def test_data_smaller_than_one_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = small(tmp_path, f"data.path={write_text(tmp_path, 1000)}", "train.global_batch=64")
    assert cli.main(["train", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("data: fewer training samples than one global batch; got 56 samples of 16 tokens; allowed at least 64; ")
    assert not (tmp_path / "run").exists()


@given(COUNTS, COUNTS, COUNTS)
def test_any_two_numbers_of_a_batch_give_the_third(micro: int, times: int, ranks: int) -> None:
    whole = micro * times * ranks
    for words in ((whole, micro, None), (whole, None, times), (None, micro, times), (whole, micro, times)):
        found = divide_batch(*words, ranks)
        assert (found.global_batch, found.micro_batch, found.accumulation, found.data_ranks) == (whole, micro, times, ranks)


@given(COUNTS, COUNTS)
def test_one_number_of_a_batch_or_none(count: int, ranks: int) -> None:
    assert divide_batch(None, count, None, ranks) == divide_batch(count * ranks, None, None, ranks) == divide_batch(None, count, 1, ranks)
    assert divide_batch(None, None, count, ranks) == divide_batch(None, 8, count, ranks)
    assert divide_batch(None, None, None, ranks) == divide_batch(None, 8, 1, ranks)


@given(st.integers(1, 10_000), COUNTS, COUNTS)
def test_the_nearest_that_works_works_and_is_nearest(asked: int, micro: int, ranks: int) -> None:
    try:
        divide_batch(asked, micro, None, ranks)
    except PlanError as error:
        (problem,) = error.problems
        nearest = int((problem.hint or "").rpartition(" ")[2])
        divide_batch(nearest, micro, None, ranks)
        for other in itertools.chain(range(asked, 0, -1), range(asked, asked + micro * ranks + 1)):
            if other % (micro * ranks) == 0:
                assert abs(nearest - asked) <= abs(other - asked)
                break
    else:
        assert asked % (micro * ranks) == 0
