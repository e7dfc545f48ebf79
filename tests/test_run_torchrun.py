"""Ranks that a launcher from outside started: they join the world they find and share one run folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import DML, alive, dml, losses, marked_environment, on_ranks, read, rows, small, train

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
DIVIDED = ("strategy=all_reduce", "train.global_batch=8")


def torchrun(ranks: int, *words: str) -> subprocess.CompletedProcess[str]:
    """``dml words`` on ``ranks`` processes that torchrun starts; none of them may be left."""
    environment, mark = marked_environment()
    done = dml(*words, command=(*TORCHRUN, str(ranks), *DML[1:]), env=environment)
    assert alive(mark) == []
    return done


def test_torchruns_ranks_share_one_run(tmp_path: Path) -> None:
    done = torchrun(2, "train", *(word for word in small(tmp_path, *DIVIDED) if not word.startswith("run=")))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "train").iterdir()
    ranks = read(folder, "ranks.json")
    assert [each["rank"] for each in ranks] == [0, 1]
    assert len({each["pid"] for each in ranks}) == 2
    assert all((folder / "logs" / f"rank-{rank}.log").exists() for rank in (0, 1))
    assert read(folder, "summary.json")["status"] == "completed"
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6]
    assert done.stderr.count("completed after 6 steps") == 1, "rank 0 alone talks"
    assert losses(folder) == losses(train(tmp_path, *DIVIDED, *on_ranks(2))), "whoever starts the ranks"


def test_another_world_typed_than_the_launchers_is_refused_with_both_numbers(tmp_path: Path) -> None:
    done = torchrun(2, "train", *small(tmp_path, *DIVIDED, "hardware.devices_per_node=3"))
    assert done.returncode != 0
    assert done.stderr.count("hardware.devices_per_node: the launcher started 2; got 3; leave it out, or start as many") == 1
    assert "exitcode  : 4" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_without_work_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = torchrun(2, "train", *small(tmp_path, "strategy=single"))
    assert done.stderr.count("strategy: strategy=single has 1 rank(s); got 2 that the launcher started") == 1
    assert "exitcode  : 4" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bad_words_are_told_once_and_nobody_waits(tmp_path: Path) -> None:
    done = torchrun(2, "train", *small(tmp_path, *DIVIDED, "train.stepz=3"))
    assert done.returncode != 0
    assert done.stderr.count("train.stepz: unknown key") == 1
    assert "exitcode  : 2" in done.stderr


def world_of_one() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.slow
def test_the_local_rank_that_a_launcher_writes_before_the_verb_is_understood(tmp_path: Path) -> None:
    done = dml("--local_rank=0", "train", *small(tmp_path, "strategy=all_reduce"), env=world_of_one())
    assert done.returncode == 0, done.stderr
    assert [each["rank"] for each in read(tmp_path / "run", "ranks.json")] == [0]


def test_a_world_of_one_refuses_with_its_own_code(tmp_path: Path) -> None:
    done = dml("train", *small(tmp_path, "strategy=all_reduce", "hardware.devices_per_node=2"), env=world_of_one())
    assert done.returncode == 4
    assert done.stderr == "hardware.devices_per_node: the launcher started 1; got 2; leave it out, or start as many\n"
