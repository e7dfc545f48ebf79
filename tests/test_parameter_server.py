"""The parameter server as a whole: whatever servers and workers there are, bsp trains as one process does; asp and ssp go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import evaluations, read, rows, small
from rank_pool import FIFTY, Job, Ranks, job, ranks
from resume_helpers import command, stop_at, weights

import dml_runner
from dml_runner import cli
from dml_runner.comm.wires.laws import encoded_bytes
from dml_runner.errors import PlanError
from dml_runner.facts import ModelFacts
from dml_runner.planning.memory import state_bytes
from dml_runner.planning.shape import measure

TOLERANCE = 1e-5
SERVED = "strategy=parameter_server"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    folder = tmp_path_factory.mktemp("pool")
    with ranks(5, folder) as found:
        yield found


def on(workers: int, servers: int, *words: str) -> tuple[str, ...]:
    """The words for so many workers and servers."""
    return (SERVED, f"hardware.devices_per_node={workers}", f"strategy.servers={servers}", *words)


COLOCATED = "strategy.placement=colocated"
SMALL_BUCKETS = "strategy.bucket_mb=0.02"
WIDTH = ("model.layers=2", "model.hidden=16")
TEXT = ("data.tokenizer=null", "data.seq_len=null", "data.vocab_size=200", "train.metrics=[]")
RESNET = ("model=resnet", "model.width=8", "model.depths=[1,1]", "data=digits", "train.metrics=[]")
FAMILIES: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {
    "gpt, clipped, accumulating": (
        ("train.clip_norm=0.5", "train.eval_every=25", "train.log_every=5"),
        [on(1, 1), on(3, 1, "train.micro_batch=2"), on(2, 3, SMALL_BUCKETS, "train.micro_batch=3"), on(3, 2, COLOCATED, SMALL_BUCKETS)],
    ),
    "gpt, untied, first block frozen, sgd": (
        ("model.tied=false", "model.frozen=1", "optimizer=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.05"),
        [on(2, 2, SMALL_BUCKETS), on(3, 1), on(2, 2, COLOCATED)],
    ),
    "bert": (("model=bert", *WIDTH, "model.heads=2", "model.context=16", *TEXT), [on(2, 1, SMALL_BUCKETS), on(3, 2, COLOCATED)]),
    "rnn": (("model=rnn", *WIDTH, "model.bptt=8", "optimizer.lr=1e-2", *TEXT), [on(3, 2, SMALL_BUCKETS), on(2, 1, COLOCATED)]),
    "resnet": (RESNET, [on(3, 2), on(2, 2, COLOCATED)]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bsp_has_the_losses_of_one_process(pool: Ranks, tmp_path: Path, family: str) -> None:
    words, ways = FAMILIES[family]
    alone, *others = pool.train(*(job(tmp_path, *FIFTY, *words, *way) for way in [("strategy=single",), *ways]))
    assert alone.rows[-1]["step"] == 50
    assert alone.losses[-1] < alone.losses[0] - 0.1
    for way, served in zip(ways, others, strict=True):
        assert served.losses == pytest.approx(alone.losses, abs=TOLERANCE), way
        assert served.held_out == pytest.approx(alone.held_out, abs=TOLERANCE), way
        assert [row["grad_norm"] for row in served.rows] == pytest.approx([row["grad_norm"] for row in alone.rows], rel=1e-3), way
        assert all(weights == served.weights[0] for weights in served.weights), "all workers hold the same"


# --- what is saved ---------------------------------------------------------------------------------------------------------

TWELVE = ("train.steps=12", "train.global_batch=12", "optimizer.lr=1e-2", "train.precision=fp32", "checkpoint.every=6")


def test_a_saved_step_goes_on_bit_by_bit_under_its_layout_and_alike_under_any_other(pool: Ranks, tmp_path: Path) -> None:
    """Servers' shares to a whole model, to replicas and to other shares, and from each of them back."""
    kept = {name: tmp_path / name / "checkpoints" for name in ("served", "again", "single", "replicas")}
    here, replicas = on(2, 2, SMALL_BUCKETS), ("strategy=all_reduce", "hardware.devices_per_node=3")
    whole, alone, copied = pool.train(
        job(tmp_path, *TWELVE, *here, save=kept["served"]),
        job(tmp_path, *TWELVE, "strategy=single", save=kept["single"]),
        job(tmp_path, *TWELVE, *replicas, save=kept["replicas"]),
    )
    assert whole.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    assert copied.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    step = "step-00000006"
    others: list[tuple[str, tuple[str, ...]]] = [("served", way) for way in (("strategy=single",), replicas, on(3, 1), on(3, 3, COLOCATED))]
    others += [(origin, way) for origin in ("single", "replicas") for way in (here, on(3, 2, COLOCATED))]
    (again, *found) = pool.train(
        job(tmp_path, *TWELVE, *here, save=kept["again"], resume=kept["served"] / step),
        *(job(tmp_path, *TWELVE, *way, resume=kept[origin] / step) for origin, way in others),
    )
    assert again.rows[0]["step"] == 7
    assert [(row["loss"], row["grad_norm"]) for row in again.rows] == [(row["loss"], row["grad_norm"]) for row in whole.rows[6:]]
    assert (again.held_out, again.weights) == (whole.held_out, whole.weights)
    assert weights(tmp_path / "again", 12) == weights(tmp_path / "served", 12)
    for (origin, way), other in zip(others, found, strict=True):
        assert other.losses == pytest.approx(alone.losses[6:], abs=TOLERANCE), (origin, way)
        assert other.held_out == pytest.approx(alone.held_out, abs=TOLERANCE), (origin, way)


def test_what_a_wire_rounded_off_is_saved(pool: Ranks, tmp_path: Path) -> None:
    kept, words = tmp_path / "kept" / "checkpoints", (*TWELVE, *on(2, 2, SMALL_BUCKETS), "quantize.gradients=onebit")
    (whole,) = pool.train(job(tmp_path, *words, save=kept))
    again, elsewhere = pool.train(
        job(tmp_path, *words, resume=kept / "step-00000006"),
        job(tmp_path, *TWELVE, *on(1, 2, SMALL_BUCKETS), "quantize.gradients=onebit", resume=kept / "step-00000006"),
    )
    assert [(row["loss"], row["grad_norm"]) for row in again.rows] == [(row["loss"], row["grad_norm"]) for row in whole.rows[6:]]
    assert again.weights == whole.weights
    assert elsewhere.losses[0] == pytest.approx(whole.losses[6], abs=TOLERANCE), "another number of workers begins with the same weights"


# --- workers that do not wait ------------------------------------------------------------------------------------------------

FREE = (
    "train.steps=50",
    "train.global_batch=12",
    "optimizer.lr=5e-3",
    "train.precision=fp32",
    "train.log_every=10",
    "train.check_every=10",
)
FREE_WAYS = {
    "asp": on(3, 2, "strategy.consistency=asp", SMALL_BUCKETS),
    "asp, colocated, clipped": on(3, 2, "strategy.consistency=asp", COLOCATED, "train.clip_norm=1"),
    "ssp": on(2, 1, "strategy.consistency=ssp", "strategy.staleness=0"),
    "ssp, colocated, sgd": on(3, 3, "strategy.consistency=ssp", COLOCATED, "optimizer=sgd", "optimizer.lr=0.5"),
}


def test_workers_that_do_not_wait_learn_and_agree_wherever_they_meet(pool: Ranks, tmp_path: Path) -> None:
    """At each border all hold the same weights (train.check_every); those saved at the end have the figures told at the end."""
    places = [tmp_path / str(number) / "checkpoints" for number in range(len(FREE_WAYS))]
    jobs = [job(tmp_path, *FREE, *way, save=place) for way, place in zip(FREE_WAYS.values(), places, strict=True)]
    ways = [[word for word in way if word.startswith("optimizer")] for way in FREE_WAYS.values()]
    found = pool.train(*jobs)
    saved = [place / "step-00000050" for place in places]
    read = pool.train(*(job(tmp_path, *FREE, *way, "strategy=single", resume=step) for way, step in zip(ways, saved, strict=True)))
    for name, free, alone in zip(FREE_WAYS, found, read, strict=True):
        assert [row["step"] for row in free.rows] == [10, 20, 30, 40, 50], name
        assert free.losses[-1] < free.losses[0] - 0.25, name
        assert free.evaluations[-1]["eval_samples"] == 125, name
        assert free.held_out == pytest.approx(alone.held_out, abs=1e-6), name
        assert all(weights == free.weights[0] == alone.weights[0] for weights in free.weights), name


# --- pushes in fewer bytes ---------------------------------------------------------------------------------------------------

WIRES = {"fp16": (3, 0.005), "bf16": (3, 0.01), "int8": (4, 0.1), "onebit": (4, 0.35)}
"""Servers beside the one worker, and how far any of 50 losses may be from that of pushes as they are."""


def test_compressed_pushes_send_what_the_law_says_and_learn_in_a_band(pool: Ranks, tmp_path: Path) -> None:
    """A worker sends its gradient encoded, a server its share of the weights as they are; ``comm_bytes`` is the rank that sends most."""
    words = ("train.steps=50", "train.global_batch=12", "optimizer.lr=1e-3", "train.precision=fp32")
    jobs = [job(tmp_path, *words, *on(1, servers, f"quantize.gradients={wire}")) for wire, (servers, _) in WIRES.items()]
    plain, *found = pool.train(job(tmp_path, *words, *on(2, 1)), *jobs)
    values = plan_of(jobs[0]).parameters
    assert {row["comm_bytes"] for row in plain.rows} == {2 * 4 * values + 2 * 8}, "both workers' weights, and the norm"
    for (wire, (servers, band)), other in zip(WIRES.items(), found, strict=True):
        predicted = max(encoded_bytes(wire, values), 4 * values / servers)
        assert all(row["comm_bytes"] == pytest.approx(predicted, rel=0.05) for row in other.rows), wire
        apart = max(abs(theirs - ours) for theirs, ours in zip(other.losses, plain.losses, strict=True))
        assert apart < band, (wire, apart)
        assert other.losses != plain.losses, wire


def plan_of(of: Job) -> ModelFacts:
    """The parameters of a job."""
    return measure(of.run, of.facts)


# --- refusals and plans ------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[tuple[str, ...], str]] = [
    (on(2, 3, COLOCATED), "strategy.servers: more than workers that could have one; got 3; allowed 1 to 2"),
    (
        on(2, 1, "quantize.gradients=powersgd"),
        "quantize.gradients: its matrices are sums over all workers, and a server hears each worker by itself; got powersgd; "
        "allowed none, fp16, bf16, int8, onebit",
    ),
    (
        on(2, 1, "model=rnn", "model.bptt=8", *TEXT, "strategy.consistency=asp"),
        "strategy.consistency: model=rnn carries state from step to step, which needs steps that all workers take together; got asp; "
        "allowed bsp",
    ),
    (
        on(2, 1, *RESNET, "strategy.consistency=ssp"),
        "strategy.consistency: batch norm has running statistics, which workers that do not meet cannot agree on; got ssp; allowed bsp; "
        "or model.norm=group",
    ),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_words_that_do_not_go_together_are_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(PlanError) as refused:
        job(tmp_path, *words)
    assert [str(problem) for problem in refused.value.problems] == [said]


def test_a_plan_tells_what_workers_and_servers_hold(tmp_path: Path) -> None:
    """AdamW: servers hold weights, gradient and two moments of their share, and what every worker pushes; workers have activations."""
    size = dml_runner.plan(small(tmp_path)).parameters
    own = dml_runner.plan(small(tmp_path, *on(3, 2)))
    share = -(-size // 2)
    assert own.world_size == 5
    activations = own.memory["activations"]
    assert own.memory == {"weights": 4 * size, "gradients": 4 * size, "activations": activations}, "a worker is fuller than a server"
    assert own.memory_per_device_bytes == sum(own.memory.values())
    (of_servers,) = own.warnings
    assert of_servers.startswith("each of 2 servers holds 0.41 MB in host memory: weights 0.06 MB, gradients 0.06 MB, optimizer 0.12 MB")
    inside = dml_runner.plan(small(tmp_path, *on(3, 1, COLOCATED, "strategy.consistency=asp", "quantize.gradients=int8")))
    served = 4 * size * 4 + 3 * (encoded_bytes("int8", size) + 4 * size)
    assert inside.world_size == 3
    assert inside.memory == {"weights": 4 * size, "gradients": 4 * size, "server": served, "activations": activations}
    assert "in host memory, in a worker's process" in inside.warnings[0]
    of = job(tmp_path, *on(3, 2))
    fullest = state_bytes(measure(of.run, of.facts), of.run.optimizer, of.layout)
    assert fullest == {"weights": 4 * share, "gradients": 4 * share, "optimizer": 8 * share, "pushes": 3 * 4 * share}
    on_gpus = state_bytes(measure(of.run, of.facts), of.run.optimizer, replace(of.layout, device="cuda"))
    assert on_gpus == {"weights": 4 * size, "gradients": 4 * size}, "no optimizer state on a device"


# --- whole commands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [on(2, 1, "strategy.consistency=asp"), on(2, 2, COLOCATED, "strategy.consistency=ssp")], ids=str)
def test_workers_that_do_not_wait_stop_when_asked_and_go_on(
    tmp_path: Path, way: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = small(tmp_path, *way, "train.global_batch=8", "train.log_every=5", "train.steps=100000", "checkpoint.every=null")
    folder = tmp_path / "run"
    stopped = stop_at(folder, 10, words).steps
    assert (folder / "checkpoints" / "latest").resolve().name == f"step-{stopped:08d}"
    last = -(-stopped // 5) * 5 + 10
    assert dml_runner.train([str(folder), f"train.steps={last}"]).status == "completed"
    steps = [row["step"] for row in rows(folder)]
    assert steps == sorted({*range(5, last + 1, 5), stopped}), "a row wherever all met, each once"
    assert read(folder, "summary.json")["resumed_from"].endswith(f"step-{stopped:08d}")
    assert cli.main(["eval", f"run={folder}"]) == 0
    (loss,) = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("loss")]
    assert float(loss) == pytest.approx(evaluations(folder)[-1]["eval_loss"], abs=1e-6)


@pytest.mark.parametrize(
    "way",
    [on(2, 2), on(2, 2, COLOCATED), on(2, 2, COLOCATED, "strategy.consistency=asp"), on(2, 1, "strategy.consistency=asp")],
    ids=["dedicated", "colocated", "asp colocated", "asp dedicated"],
)
def test_numbers_that_are_not_finite_end_the_run_with_6_and_one_line(
    tmp_path: Path, way: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = small(
        tmp_path, *way, "optimizer=sgd", "optimizer.lr=1e30", "train.global_batch=8", "train.steps=1000", "launcher.hang_floor_s=20"
    )
    code, lines = command(capsys, *words)
    assert code == 6, lines
    (line,) = [line for line in lines if "not finite" in line]
    assert line.startswith("step "), line
    assert "try a lower optimizer.lr" in line
    assert not [line for line in lines if "starting again" in line or "hang" in line], lines
