"""Helpers: sums equal to numpy, bytes and seconds of the law, training as one process does, a helper that dies."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from faults import meanwhile, strike, train
from helpers import evaluations, in_group, losses, read, small
from rank_pool import Ranks, Trained, job, ranks

from dml_runner.comm import helped, laws
from dml_runner.comm.links import Links
from dml_runner.comm.world import World
from dml_runner.errors import PlanError

TOLERANCE = 1e-5
HELPED = "strategy=parameter_server"
CASES = [(size, dtype) for size in (0, 1, 7) for dtype in (torch.float32, torch.float16, torch.int64)] + [(100_000, torch.float32)]


# --- sums ----------------------------------------------------------------------------------------------------------------


def sums(world: World) -> list[Any]:
    """Every number of workers and helpers, type and size: what went wrong on this rank, and a sum of random numbers for each."""
    wrong: list[str] = []
    random: list[bytes] = []
    for workers, helpers in ((n, k) for n in range(1, 5) for k in range(1, 4)):
        links = Links(dist.group.WORLD, world.sent, range(world.size)[: workers + helpers]) if world.rank < workers + helpers else None
        for size, dtype in CASES if links is not None else ():
            assert links is not None
            given = [((np.arange(size) * (rank + 1) + rank) % 8) for rank in range(workers)]
            case = f"{size} {dtype} on {workers} workers and {helpers} helpers: rank {world.rank}"
            chunk = 64 if size < 100_000 else None
            world.sent.take()
            if world.rank < workers:
                tensor = torch.from_numpy(given[world.rank]).to(dtype, copy=True)
                helped.all_reduce(links, tensor, workers, chunk)
                if not np.array_equal(tensor.long().numpy(), np.sum(given, axis=0)):
                    wrong.append(f"{case} has {tensor}")
            else:
                helped.serve(links, size, dtype, workers, chunk)
            law, sent = laws.helped_traffic(size, dtype.itemsize, workers, helpers).sent[world.rank], world.sent.take()
            if sent != law:
                wrong.append(f"{case} sent {sent}, not {law}")
        if links is not None:
            random.append(of_random_numbers(links, workers))
    return [wrong, random]


def of_random_numbers(links: Links, workers: int) -> bytes:
    """The bits of a sum over the workers; of a helper nothing."""
    size = 30_011
    if links.rank >= workers:
        helped.serve(links, size, torch.float32, workers, 4096)
        return b""
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(links.rank))
    helped.all_reduce(links, tensor, workers, 4096)
    return tensor.numpy().tobytes()


def test_sums_are_those_of_numpy_with_the_bytes_of_the_law_and_the_same_bits_for_any_helpers(tmp_path: Path) -> None:
    found = in_group(7, sums, tmp_path)
    wrong = [each for rank in found for each in rank[0]]
    assert not wrong, "\n".join(wrong[:20])
    # rank 0 works in all twelve cases, three for each number of workers; rank r is a worker in all with more than r
    of_first: list[bytes] = found[0][1]
    assert [len(set(of_first[at : at + 3])) for at in (0, 3, 6, 9)] == [1] * 4
    assert [rank[1][-1] for rank in found[1:4]] == [of_first[-1]] * 3


def test_the_law_in_closed_form() -> None:
    size = 18 * 20 * 8 * 10
    assert [laws.helped_seconds(size, 4, helpers, size) for helpers in (0, 1, 2, 4, 9)] == pytest.approx([1.5, 4 / 3, 1.2, 1, 1])
    for workers in range(1, 9):
        for helpers in range(workers + 2):
            moved = laws.helped_traffic(size, 4, workers, helpers)
            assert sum(moved.sent) == sum(moved.received)
            assert moved.seconds(1.0) == pytest.approx(laws.helped_seconds(4 * size, workers, helpers, 1.0), rel=0.01)
            if 0 < helpers <= workers and workers > 1:
                assert moved.sent[0] == pytest.approx(moved.sent[-1], rel=0.01), "all links are equally full"
    assert laws.helped_bounds(18, 4, 1) == [0, 3, 6, 9, 12, 18]
    assert laws.helped_bounds(16, 4, 4) == [0, 0, 0, 0, 0, 4, 8, 12, 16]


# --- jobs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(5, tmp_path_factory.mktemp("pool")) as found:
        yield found


def on(workers: int, helpers: int, *words: str) -> tuple[str, ...]:
    """The words for so many workers and helpers, whose buckets are many and small."""
    return (HELPED, f"hardware.devices_per_node={workers}", f"strategy.helpers={helpers}", "strategy.bucket_mb=0.02", *words)


TWENTY = (
    "train.steps=20",
    "train.global_batch=12",
    "optimizer.lr=1e-3",
    "train.precision=fp32",
    "train.check_every=5",
    "checkpoint.every=10",
)
RESNET = ("model=resnet", "model.width=8", "model.depths=[1,1]", "data=digits", "train.metrics=[]")
STEP = "step-00000010"


def sent_by_law(trained: Trained, of: Trained, workers: int, helpers: int) -> None:
    """Every step of ``trained`` sends what the law says for the model that ``of`` summed by a ring."""
    (ring,) = {row["comm_bytes"] for row in of.rows}
    (sent,) = {row["comm_bytes"] for row in trained.rows}
    expected = ring * laws.helped_seconds(1, workers, helpers, 1.0) / (2 * (workers - 1) / workers)
    assert sent == pytest.approx(expected, rel=0.01), (workers, helpers)


@pytest.mark.slow
def test_jobs_with_helpers_train_as_one_process_and_resume_anywhere(pool: Ranks, tmp_path: Path) -> None:
    kept = {name: tmp_path / name / "checkpoints" for name in ("helped", "single")}
    rings = [("strategy=all_reduce", f"hardware.devices_per_node={workers}", "strategy.bucket_mb=0.02") for workers in (2, 3)]
    clipped = (*TWENTY, "train.clip_norm=0.5")
    alone, two, three, one_helps, two_help, three_work = pool.train(
        job(tmp_path, *clipped, "strategy=single", save=kept["single"]),
        *(job(tmp_path, *clipped, *way) for way in rings),
        job(tmp_path, *clipped, *on(2, 1), save=kept["helped"]),
        *(job(tmp_path, *clipped, *way) for way in (on(2, 2), on(3, 2, "train.micro_batch=2"))),
    )
    assert alone.losses[-1] < alone.losses[0] - 0.05
    for trained, ring, workers, helpers in ((one_helps, two, 2, 1), (two_help, two, 2, 2), (three_work, three, 3, 2)):
        assert trained.losses == pytest.approx(alone.losses, abs=TOLERANCE)
        assert trained.held_out == pytest.approx(alone.held_out, abs=TOLERANCE)
        assert all(weights == trained.weights[0] for weights in trained.weights)
        sent_by_law(trained, ring, workers, helpers)
    assert one_helps.losses == two_help.losses, "sums do not depend on who makes them"
    again, *others = pool.train(
        job(tmp_path, *clipped, *on(2, 2), resume=kept["helped"] / STEP),
        *(job(tmp_path, *clipped, *way, resume=kept["helped"] / STEP) for way in (("strategy=single",), rings[1])),
        job(tmp_path, *clipped, *on(3, 2), resume=kept["single"] / STEP),
    )
    assert (again.losses, again.weights) == (one_helps.losses[10:], one_helps.weights)
    for other in others:
        assert other.losses == pytest.approx(alone.losses[10:], abs=TOLERANCE)


def test_batch_norm_is_the_workers_and_halves_halve_the_bytes(pool: Ranks, tmp_path: Path) -> None:
    alone, resnet = pool.train(*(job(tmp_path, *TWENTY, *RESNET, *way) for way in (("strategy=single",), on(2, 1))))
    assert resnet.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    assert resnet.held_out == pytest.approx(alone.held_out, abs=TOLERANCE)
    plain, *halves = pool.train(
        *(job(tmp_path, *TWENTY, *on(3, 1, f"quantize.gradients={wire}")) for wire in ("none", "fp16", "bf16")),
    )
    for trained, band in zip(halves, (0.001, 0.01), strict=True):
        assert trained.rows[-1]["comm_bytes"] == pytest.approx(plain.rows[-1]["comm_bytes"] / 2, rel=0.01)
        assert abs(trained.losses[-1] - plain.losses[-1]) < band
        assert trained.losses != plain.losses


# --- a helper dies -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_helper_leaves_no_trace(pool: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, run = (*on(2, 1), "train.steps=80", "train.global_batch=8", "checkpoint.every=20"), tmp_path / "run"
    with meanwhile(strike(run, 30, 2, signal.SIGKILL)):
        assert train(small(tmp_path, *words)) == 0
    assert "rank 2 was killed by SIGKILL at step" in capsys.readouterr().err
    (untouched,) = pool.train(job(tmp_path, *words))
    assert (losses(run), evaluations(run)[-1]["eval_loss"]) == (untouched.losses, untouched.held_out[-1])
    assert [each["role"] for each in read(run, "ranks.json")] == ["worker", "worker", "helper"]
    summary = read(run, "summary.json")
    assert (summary["restarts"], summary["layout"]["helpers"]) == (1, 1)


# --- refusals ------------------------------------------------------------------------------------------------------------

REASON = "with strategy.helpers every worker holds all weights, and all take each step together"
REFUSED = {
    on(2, 3): "strategy.helpers: more than workers, who then sum nothing themselves; got 3; allowed 0 to 2",
    on(1, 1): "strategy.helpers: one worker has nothing to sum; got 1; allowed 0",
    on(2, 1, "strategy.consistency=asp"): f"strategy.consistency: {REASON}; got asp; allowed bsp; or strategy.helpers=0",
    on(2, 1, "strategy.replicas=1"): f"strategy.replicas: {REASON}; got 1; allowed 0; or strategy.helpers=0",
    on(2, 1, "strategy.servers=2"): f"strategy.servers: {REASON}; got 2; allowed 1; or strategy.helpers=0",
    on(2, 1, "quantize.gradients=int8"): "quantize.gradients: helpers add numbers, and a sum of such messages is no message of theirs;"
    " got int8; allowed none, fp16, bf16; or strategy.helpers=0",
}


def test_refusals_say_what_would_do(tmp_path: Path) -> None:
    for words, line in REFUSED.items():
        with pytest.raises(PlanError) as caught:
            job(tmp_path, *words)
        assert line in str(caught.value).splitlines(), str(caught.value)
