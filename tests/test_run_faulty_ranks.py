"""Ranks that go wrong: the one whose weights differ is named, the one that fails first speaks first, nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import alive, in_group, marked_environment, on_ranks, read, rows, small, started, train, wait_for

from dml_runner import cli
from dml_runner.comm.world import World
from dml_runner.engines.assemble import assemble
from dml_runner.engines.base import StepReport
from dml_runner.engines.torch_engine import TorchEngine
from dml_runner.errors import CameApart, Diverged, DmlError
from dml_runner.generation import read_generation
from dml_runner.job import read_job_file
from dml_runner.launch import failure, local
from dml_runner.launch.rank import be_rank
from dml_runner.layout import Mesh
from dml_runner.loops.check import check_replicas
from dml_runner.run_folder import RunFolder
from dml_runner.worker import Ticket

# --- weights that differ -------------------------------------------------------------------------------------------------


def flip_one_bit(engine: Any) -> None:
    """The lowest bit of one weight."""
    weights = dict(engine.model.named_parameters())["blocks.1.mlp.up.weight"]
    weights.detach().view(torch.int32)[3, 5] ^= 1


def check_with_one_bit_flipped(world: World, folder: str, cases: list[int | None]) -> list[str]:
    """What check_replicas says on this rank while the memory of one rank, or of none, has failed."""
    run = Path(folder)
    job = read_job_file(run / "job.yaml")
    engine = assemble(job.run, job.data, read_generation((run / "generations" / "0.json").read_text()).layout, world)
    said = []
    for faulty in cases:
        if world.rank == faulty:
            flip_one_bit(engine)
        try:
            check_replicas(engine, world, Mesh(data=world.size), 7)
            said.append("equal")
        except CameApart as error:
            said.append(str(error))
        if world.rank == faulty:
            flip_one_bit(engine)
    return said


@pytest.mark.parametrize(("ranks", "cases"), [(2, [1, None]), (3, [None, 0, 1, 2, None])])
def test_a_rank_with_one_flipped_bit_is_named(tmp_path: Path, ranks: int, cases: list[int | None]) -> None:
    folder = train(tmp_path, *on_ranks(ranks), "train.steps=1", "train.check_every=1")
    for said in in_group(ranks, check_with_one_bit_flipped, tmp_path, str(folder), cases):
        for faulty, line in zip(cases, said, strict=True):
            named = f"rank {faulty}: its weights differ from the other ranks' after step 7, first in blocks.1.mlp.up.weight; "
            assert line == "equal" if faulty is None else line.startswith(named)


def flipping_rank(ticket: Ticket) -> int:
    """A rank as the launcher starts it; the memory of rank 1 fails once, after step 4 of the first start."""
    if os.environ["RANK"] == "1" and json.loads(ticket.generation)["number"] == 0:
        update = TorchEngine.step

        def step(self: TorchEngine, number: int, *arguments: Any) -> StepReport:
            report = update(self, number, *arguments)
            if number == 4:
                flip_one_bit(self)
            return report

        TorchEngine.step = step  # type: ignore[method-assign, assignment]
    return be_rank(ticket)


def test_a_run_whose_ranks_came_apart_names_the_rank_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To go on from what was saved would trust weights that nobody can vouch for."""
    monkeypatch.setattr(local, "be_rank", flipping_rank)
    words = small(tmp_path, *on_ranks(2), "train.check_every=3", "checkpoint.every=2", "train.steps=20")
    assert cli.main(["train", *words]) == 5
    said = capsys.readouterr().err
    assert "\nrank 1: its weights differ from the other ranks' after step 6, first in blocks.1.mlp.up.weight; " in said
    assert "starting again" not in said
    assert read(tmp_path / "run", "summary.json")["status"] == "failed"


# --- ranks that fail -----------------------------------------------------------------------------------------------------


def recorded(folder: RunFolder, *errors: tuple[int, BaseException]) -> None:
    for rank, error in errors:
        failure.record(folder, rank, error)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.create()
    return folder


def test_a_ranks_own_error_stands_before_the_broken_connections_of_others(folder: RunFolder) -> None:
    lost = [RuntimeError(f"[enforce fail at transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:{port}") for port in range(4)]
    recorded(folder, (0, lost[0]), (2, lost[2]), (1, ValueError("rank 1's own")), (3, lost[3]))
    found = failure.explain(folder, 4, dict.fromkeys(range(4), 1), [5, 5, 5, 5], folder.path)
    assert [each.rank for each in found] == [1, 0, 2, 3]
    assert (found[0].text, found[0].lost_peer) == ("ValueError: rank 1's own", False)
    assert all(each.lost_peer for each in found[1:])


def test_the_first_of_two_errors_stands_first_and_gives_the_code(folder: RunFolder) -> None:
    recorded(folder, (2, Diverged("loss: not finite")), (0, OSError("later")))
    (first, second) = failure.explain(folder, 3, {0: 1, 2: 6}, [4, 4, 4], folder.path)
    assert (first.rank, first.exit_code, first.text) == (2, 6, "loss: not finite")
    assert (second.rank, second.exit_code) == (0, 5)


def test_what_all_ranks_say_stands_once(folder: RunFolder) -> None:
    recorded(folder, *((rank, Diverged("loss: not finite")) for rank in range(4)))
    assert [each.rank for each in failure.explain(folder, 4, dict.fromkeys(range(4), 6), [4] * 4, folder.path)] == [0]


def test_a_rank_killed_by_a_signal_says_nothing_and_is_named_with_its_step(folder: RunFolder) -> None:
    recorded(folder, (0, RuntimeError("Gloo: connection reset by peer")))
    found = failure.explain(folder, 2, {0: 1, 1: -signal.SIGKILL}, [11, 12], folder.path)
    assert [each.rank for each in found] == [1, 0]
    assert found[0].text.startswith("rank 1 was killed by SIGKILL at step 12; out of memory?")


def test_a_rank_that_leaves_without_an_error_is_the_cause_when_nobody_has_one(folder: RunFolder) -> None:
    recorded(folder, (0, RuntimeError("Socket closed")))
    left = failure.explain(folder, 2, {0: 1, 1: 0}, [3, 3], folder.path)
    assert left[0].text == "rank 1 left at step 3 without an error"


def test_what_earlier_generations_recorded_is_forgotten(folder: RunFolder) -> None:
    recorded(folder, (0, DmlError("old")), (1, DmlError("old")))
    failure.forget(folder, 2, folder.path)
    assert failure.explain(folder, 2, {}, [0, 0], folder.path) == []


# --- real ends -----------------------------------------------------------------------------------------------------------


def test_what_no_restart_helps_is_told_once_by_the_rank_that_has_it(tmp_path: Path) -> None:
    environment, mark = marked_environment()
    words = small(tmp_path, *on_ranks(2), "optimizer=sgd", "optimizer.lr=1e30", "train.steps=50")
    with started("train", *words, env=environment) as process:
        _, said = process.communicate(timeout=90)
    assert process.returncode == 6, said
    assert said.count("gradient is not finite") == 1, said
    assert "starting again" not in said
    assert "Traceback" not in said
    assert read(tmp_path / "run", "summary.json")["status"] == "failed"
    assert alive(mark) == []


def test_no_rank_outlives_a_command_that_is_killed(tmp_path: Path) -> None:
    environment, mark = marked_environment()
    with started("train", *small(tmp_path, *on_ranks(2), "train.steps=100000"), env=environment) as process:
        wait_for(lambda: rows(tmp_path / "run")[5:])
        process.kill()
    assert alive(mark) == []
