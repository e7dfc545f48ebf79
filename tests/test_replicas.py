"""Replicas: a server dies, and the run goes on from the copy of its share in another server's memory."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from faults import meanwhile, strike, train, wait_for_step
from helpers import losses, read, rows, small

from dml_runner import cli
from dml_runner.bench.faults_evidence import evidence
from dml_runner.checkpoint.names import step_of
from dml_runner.comm.pairs import Within, within
from dml_runner.layout import Batch, Layout, Mesh, Servers
from dml_runner.loops.rescue import choose
from dml_runner.parallel.replica import Replica, places, unpack

STEPS, EVERY = 120, 7
WORKERS, SERVERS = 2, 2
SERVED = ("strategy=parameter_server", f"hardware.devices_per_node={WORKERS}", f"strategy.servers={SERVERS}")
JOB = (*SERVED, f"train.steps={STEPS}", "train.global_batch=8", "launcher.hang_floor_s=20")
REPLICAS = ("strategy.replicas=1", f"strategy.replicate_every={EVERY}")
NO_SAVES = ("checkpoint.every=null", "train.eval_every=null")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run that nobody disturbs leaves."""
    folder = tmp_path_factory.mktemp("alone")
    assert train(small(folder, *JOB, *NO_SAVES, *REPLICAS)) == 0
    return evidence(folder / "run")


def went_on_from(said: str) -> tuple[int, int]:
    """(step that was gone back to, last step that was begun before)."""
    found = re.search(r"starting again from step (\d+)(?: \(steps \d+ to (\d+) are done again\))?", said)
    assert found is not None, said
    return int(found[1]), int(found[2] or found[1])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [WORKERS + 1, 0])
def test_bsp_goes_on_from_the_copies_bit_by_bit(
    tmp_path: Path, alone: dict[str, str], capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    run = tmp_path / "run"
    with meanwhile(strike(run, 45, rank, signal.SIGKILL)):
        assert train(small(tmp_path, *JOB, *NO_SAVES, *REPLICAS)) == 0
    said = capsys.readouterr().err
    step, begun = went_on_from(said)
    assert f"rank {rank} was killed by SIGKILL at step" in said
    who = "server 1 (rank 3) in server 0 (rank 2)" if rank else "worker 0 in worker 1"
    assert f"the replica of {who} is of step {step}" in said
    assert step % EVERY == 0
    assert begun - step <= 2 * EVERY, "what a death costs at most"
    assert step >= 45 - 2 * EVERY
    assert evidence(run) == alone
    assert step_of(Path(read(run, "summary.json")["resumed_from"]).name) == step


@pytest.mark.slow
def test_servers_that_die_with_each_others_replicas_go_back_to_the_last_commit(
    tmp_path: Path, alone: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def act() -> None:
        pids = wait_for_step(run, 45)
        for pid in pids[WORKERS:]:
            os.kill(pid, signal.SIGKILL)

    with meanwhile(act):
        assert train(small(tmp_path, *JOB, "train.eval_every=null", "checkpoint.every=40", *REPLICAS)) == 0
    said = capsys.readouterr().err
    assert "no newer step is whole in the memory of those that are left" in said, said
    assert went_on_from(said)[0] % 40 == 0
    assert evidence(run) == alone


@pytest.mark.slow
def test_asp_goes_on_learning_from_the_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with meanwhile(strike(run, 45, WORKERS, signal.SIGKILL)):
        assert train(small(tmp_path, *JOB, *NO_SAVES, *REPLICAS, "strategy.consistency=asp")) == 0
    said = capsys.readouterr().err
    step, begun = went_on_from(said)
    assert f"the replica of server 0 (rank 2) in server 1 (rank 3) is of step {step}" in said
    assert step % EVERY == 0
    assert begun - step <= 2 * EVERY
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    assert losses(run)[-1] < losses(run)[0] - 0.3


@pytest.mark.slow
def test_what_a_wire_owes_is_copied_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*JOB, *NO_SAVES, *REPLICAS, "quantize.gradients=onebit")
    assert train(small(tmp_path, *words, run="alone")) == 0
    capsys.readouterr()
    with meanwhile(strike(tmp_path / "run", 45, WORKERS, signal.SIGKILL)):
        assert train(small(tmp_path, *words)) == 0
    step, _ = went_on_from(capsys.readouterr().err)
    assert step >= 45 - 2 * EVERY
    assert evidence(tmp_path / "run") == evidence(tmp_path / "alone")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("strategy.servers=1",), "strategy.replicas: a replica lives in another server, and there is one; got 1; allowed 0"),
        (("strategy.placement=colocated",), "strategy.replicas: a server in a worker's process is no rank of its own; got 1; allowed 0"),
        (("strategy.helpers=1",), "strategy.replicas: helpers hold nothing that could be copied; got 1; allowed 0"),
        (("launcher=torchrun",), "strategy.replicas: launcher=torchrun ends all ranks as soon as one dies"),
        (("model=rnn",), "strategy.replicas: model=rnn carries state from step to step in each worker, of which there is no copy"),
    ],
)
def test_replicas_that_could_not_help_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert cli.main(["plan", *small(tmp_path, *JOB, *REPLICAS, *words)]) == 3
    assert message in capsys.readouterr().err


# --- copies ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[Replica, Replica, Callable[[], None]]]:
    """Two replicas that copy to each other, and what ends the first one's sending."""
    one, other = within(), within()
    found = Replica(one[0], other[1]), Replica(other[0], one[1])
    yield *found, _closing(one[0])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Replica.close, found))


def _closing(side: Within) -> Callable[[], None]:
    return side.close


def test_two_generations_stay_and_are_what_was_copied(pair: tuple[Replica, Replica, Callable[[], None]]) -> None:
    one, other, _ = pair
    weights, count = torch.arange(5.0), torch.tensor(3.0)
    for step in (10, 20, 30):
        for replica in (one, other):
            replica.copy(step, [weights + step, count, weights[:0]], f"after {step}")
        for replica in (one, other):
            replica.settle()
    assert sorted(one.own) == sorted(other.other) == [20, 30]
    begins, _ = places([weights, count, weights[:0]])
    for copies in (one.own, one.other, other.own, other.other):
        assert copies[20].words == "after 20"
        assert torch.equal(unpack(copies[20].flat, begins[0], torch.float32, (5,)), weights + 20)
        assert unpack(copies[30].flat, begins[1], torch.float32, ()).item() == 3.0


def test_tensors_that_share_memory_are_copied_once() -> None:
    weights = torch.zeros(10)
    begins, size = places([weights, weights.view(2, 5), weights[:3]])
    assert begins == [0, 0, 40]
    assert size == 40 + 16


def test_a_copy_that_will_not_come_is_no_hang(pair: tuple[Replica, Replica, Callable[[], None]]) -> None:
    one, other, end = pair
    end()
    other.copy(10, [torch.zeros(3)], "three")
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        other.settle()
    assert not other.other
    assert one.own == {}


# --- what is saved after a death --------------------------------------------------------------------------------------------


def layout(servers: int, workers: int = 2, consistency: str = "bsp") -> Layout:
    """So many servers of their own."""
    return Layout(
        strategy="parameter_server",
        engine="torch",
        mesh=Mesh(data=workers),
        nodes=1,
        device="cpu",
        backend="gloo",
        batch=Batch(workers, 1, 1, workers),
        synchronisation="servers",
        bucket_mb=1.0,
        precision="fp32",
        steps=100,
        servers=Servers(servers, True, consistency, 0, 1, 10),  # type: ignore[arg-type]
    )


def held(made: Layout, rank: int, *steps: int, arrived: tuple[int, ...] | None = None, committed: int = 0) -> torch.Tensor:
    """What a rank says it holds: copies of ``steps``, and of the server before it those that have ``arrived``."""
    workers, count = made.mesh.size, made.world_size - made.mesh.size
    parts = [made.saver(each) for each in range(workers)]
    found = [(part, step) for part in parts if part is not None for step in steps]
    if rank >= workers:
        before = workers + (rank - workers - 1) % count
        found = [
            (part, step)
            for which, some in ((rank, steps), (before, steps if arrived is None else arrived))
            for step in some
            for part in [made.saver(which)]
            if part is not None
        ]
    return torch.tensor([(-1, committed), *found])


@pytest.mark.parametrize("consistency", ["bsp", "asp"])
def test_the_newest_step_is_chosen_that_is_whole_somewhere(consistency: str) -> None:
    made = layout(4, consistency=consistency)
    first = made.saver(2)
    assert first is not None

    def chosen(dead: set[int], committed: int = 0, late: int | None = None) -> tuple[int, dict[int, int]]:
        living = [rank for rank in range(made.world_size) if rank not in dead]
        return choose(made, living, [held(made, r, 10, 20, arrived=(10,) if r == late else None, committed=committed) for r in living])

    everyone = {part: rank for rank in range(made.world_size) if (part := made.saver(rank)) is not None}
    assert chosen(set()) == (20, everyone)
    assert chosen({3}) == (20, {**everyone, first + 1: 4})
    assert chosen({3}, late=4) == (10, {**everyone, first + 1: 4}), "the copy of step 20 was on its way"
    assert chosen({5}) == (20, {**everyone, first + 3: 2}), "the last server's replica is in the first"
    assert chosen({2, 4}) == (20, {**everyone, first: 3, first + 2: 5})
    assert chosen({0}) == (20, {**everyone, 0: 1})
    assert chosen({3, 4}) == (0, {})
    assert chosen({0, 1}) == (0, {})
    assert chosen({3}, committed=20) == (0, {}), "what is saved need not be saved again"
    assert chosen({3}, committed=10, late=4) == (0, {})
