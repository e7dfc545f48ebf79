"""All-reduce as a whole: every algorithm trains as one process does; wires and local steps send what they should and learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import rows, small
from rank_pool import FIFTY, Job, Ranks, job, ranks
from resume_helpers import stop_at, weights

from dml_runner.comm.wires.laws import traffic
from dml_runner.errors import PlanError
from dml_runner.planning.shape import measure

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(4, tmp_path_factory.mktemp("pool")) as found:
        yield found


def on(number: int, *words: str, nodes: int = 1) -> tuple[str, ...]:
    """The words for so many ranks."""
    return ("strategy=all_reduce", f"hardware.nodes={nodes}", f"hardware.devices_per_node={number // nodes}", *words)


# --- algorithms ------------------------------------------------------------------------------------------------------------

ALGORITHMS = [
    *(on(number, f"strategy.algorithm={name}", "strategy.bucket_mb=0.02") for number in (2, 3, 4) for name in ("ring", "tree")),
    on(4, "strategy.algorithm=hierarchical", nodes=2),
    on(3, "strategy.algorithm=hierarchical", nodes=1),
]


def test_every_lossless_algorithm_has_the_losses_of_one_process(pool: Ranks, tmp_path: Path) -> None:
    words = (*FIFTY, "train.eval_every=25")
    alone, *others = pool.train(*(job(tmp_path, *words, *way) for way in [("strategy=single",), *ALGORITHMS]))
    assert len(alone.losses) == 50
    for way, other in zip(ALGORITHMS, others, strict=True):
        assert other.losses == pytest.approx(alone.losses, abs=TOLERANCE), way
        assert other.held_out == pytest.approx(alone.held_out, abs=TOLERANCE), way
        assert all(each == other.weights[0] for each in other.weights), way


# --- wires -----------------------------------------------------------------------------------------------------------------

LEARNING = ("train.steps=50", "train.global_batch=12", "optimizer.lr=1e-3", "train.precision=fp32", "checkpoint.every=25")
BANDS = {"fp16": 0.01, "bf16": 0.01, "int8": 0.06, "onebit": 0.35, "powersgd": 0.1}
"""How far any of 50 losses may be from that of gradients that travel as they are."""


def shapes(of: Job) -> list[tuple[int, ...]]:
    """Shapes of the gradients of a job, which fill one bucket."""
    return [each.shape for each in measure(of.run, of.facts).tensors]


def test_wires_send_what_the_law_says_learn_in_a_band_and_go_on_bit_by_bit(pool: Ranks, tmp_path: Path) -> None:
    """Step 25 is gone on from on the same ranks, with what the wire remembered there, and on others, which begin without."""
    kept = {wire: tmp_path / wire / "checkpoints" for wire in BANDS}
    words = {wire: (*LEARNING, f"quantize.gradients={wire}", "quantize.rank=2") for wire in BANDS}
    jobs = {wire: job(tmp_path, *words[wire], *on(3), save=kept[wire]) for wire in BANDS}
    plain, *found = pool.train(job(tmp_path, *LEARNING, *on(3)), *jobs.values())
    for (wire, band), other in zip(BANDS.items(), found, strict=True):
        predicted = traffic(wire, shapes(jobs[wire]), 3, power_rank=2).most_sent
        assert all(row["comm_bytes"] == pytest.approx(predicted, rel=0.05) for row in other.rows), (wire, predicted)
        apart = max(abs(theirs - ours) for theirs, ours in zip(other.losses, plain.losses, strict=True))
        assert 0 < apart < band, (wire, apart)
        assert all(each == other.weights[0] for each in other.weights), wire
    steps = {wire: kept[wire] / "step-00000025" for wire in BANDS}
    again = pool.train(
        *(job(tmp_path, *words[wire], *on(3), save=tmp_path / f"{wire}-again" / "checkpoints", resume=steps[wire]) for wire in BANDS),
        *(job(tmp_path, *words[wire], *on(2), resume=steps[wire]) for wire in ("int8", "powersgd")),
    )
    for wire, whole, resumed in zip(BANDS, found, again, strict=False):
        assert resumed.losses == whole.losses[25:], wire
        assert weights(tmp_path / f"{wire}-again", 50) == weights(tmp_path / wire, 50), wire
    for resumed in again[len(BANDS) :]:
        assert resumed.losses[-1] == pytest.approx(plain.losses[-1], abs=0.1)


# --- local steps -----------------------------------------------------------------------------------------------------------

LOCAL = ("train.steps=12", "train.global_batch=12", "train.precision=fp32", "train.check_every=1")
SGD = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=0.5")


def test_local_steps_send_a_share_of_the_bytes_and_average_the_weights(pool: Ranks, tmp_path: Path) -> None:
    summed, fourth, later, one, single = pool.train(
        job(tmp_path, *LOCAL, *SGD, *on(3)),
        job(tmp_path, *LOCAL, *SGD, *on(3, "strategy.local_steps=4", "train.eval_every=1", "train.eval_batches=1")),
        job(tmp_path, *LOCAL, "optimizer.lr=1e-2", *on(3, "strategy.local_steps=5", "strategy.local_after=2", "train.eval_every=1")),
        job(tmp_path, *LOCAL, *SGD, *on(3, "strategy.local_steps=2", "train.steps=1")),
        job(tmp_path, *LOCAL, *SGD, *on(3), "train.steps=1"),
    )
    sent = [row["comm_bytes"] for row in fourth.rows]
    assert sum(sent) == pytest.approx(sum(row["comm_bytes"] for row in summed.rows) / 4, rel=0.01)
    assert [step for step, count in enumerate(sent, start=1) if count] == [4, 8, 12]
    assert [step for step, row in enumerate(later.rows, start=1) if row["comm_bytes"]] == [1, 2, 7, 12]
    assert [row["step"] for row in fourth.evaluations] == [4, 8, 12], "evaluations wait for the next average"
    assert [row["step"] for row in later.evaluations] == [1, 2, 7, 12]
    for found in (fourth, later):
        assert all(each == found.weights[0] for each in found.weights)
        assert found.losses[-1] < found.losses[0] - 0.1
    assert one.held_out == pytest.approx(single.held_out, abs=1e-6), "one local step of SGD and an average: the mean gradient"


def test_a_wish_to_stop_between_two_averages_is_granted_at_the_next(tmp_path: Path) -> None:
    words = small(tmp_path, *on(2, "strategy.local_steps=20"), "train.steps=100000", "train.global_batch=8", "checkpoint.every=7")
    summary = stop_at(tmp_path / "run", 25, words)
    assert summary.steps % 20 == 0
    assert rows(tmp_path / "run")[-1]["step"] == summary.steps
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved[-1] == f"step-{summary.steps:08d}"
    assert all(int(name.removeprefix("step-")) % 20 == 0 for name in saved)


# --- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("quantize.gradients=int8", "strategy.algorithm=ring"),
            "strategy.algorithm: quantize.gradients=int8 has a way of its own: each rank sums one share of every bucket; got ring; "
            "allowed backend",
        ),
        (
            ("quantize.gradients=fp16", "strategy.local_steps=2"),
            "quantize.gradients: averages carry weights, which travel as they are; got fp16; allowed none; or strategy.local_steps=1",
        ),
    ],
)
def test_words_that_do_not_go_together_are_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(PlanError) as refused:
        job(tmp_path, *on(2), *words)
    assert [str(problem) for problem in refused.value.problems] == [said]
