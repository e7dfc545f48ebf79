"""Bytes on the wire: what a step sends follows the ring's law, and accumulating sends nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import in_group, on_ranks, read, rows, train, wait_for

from dml_runner.comm.world import World

WIDTH = 512
BACKWARDS = 5


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_sends_the_rings_share_of_the_gradients_whatever_it_accumulates(tmp_path: Path, ranks: int, accumulation: int) -> None:
    folder = train(tmp_path, *on_ranks(ranks), "train.micro_batch=1", f"train.accumulation={accumulation}", "train.steps=3")
    gradients = 4 * read(folder, "generations/0.json")["plan"]["parameters"]
    for row in rows(folder):
        assert row["comm_bytes"] == pytest.approx(2 * (ranks - 1) / ranks * gradients, abs=64)


def test_one_rank_sends_nothing(tmp_path: Path) -> None:
    assert [row["comm_bytes"] for row in rows(train(tmp_path, "strategy=single"))] == [0] * 6


def count_and_measure(world: World, folder: str) -> dict[str, float]:
    """What backwards that accumulate, and one that does not, send: as counted by this rank, and over the loopback by all."""
    import torch
    import torch.distributed as dist

    from dml_runner.comm.links import Links
    from dml_runner.parallel.replicate import Replicas, Sum

    how = Sum(Links(dist.group.WORLD, world.sent), "backend", world.size)
    replicas = Replicas(torch.nn.Linear(WIDTH, WIDTH, bias=False), world.device, 25.0, world.sent, how)

    def backward() -> None:
        replicas.module(torch.ones(1, WIDTH)).sum().backward()

    def accumulate() -> None:
        for _ in range(BACKWARDS):
            with replicas.accumulate():
                backward()

    replicas.settle(lambda module: module(torch.ones(1, WIDTH)).sum().backward())
    world.sent.take()
    found = {}
    for name, work in (("accumulating", accumulate), ("reducing", backward)):
        meet(world, Path(folder) / f"{name}-before")
        before = loopback_bytes()
        meet(world, Path(folder) / f"{name}-looked")
        work()
        meet(world, Path(folder) / f"{name}-done")
        found |= {name: float(world.sent.take()), f"loopback_{name}": float(loopback_bytes() - before)}
    (weight,) = replicas.module.parameters()
    found["gradient"] = float(weight.grad.sum()) if weight.grad is not None else 0.0
    return found


def meet(world: World, place: Path) -> None:
    """Wait until every rank is here; through files, for the network is what is measured."""
    place.mkdir(exist_ok=True)
    (place / str(world.rank)).touch()
    wait_for(lambda: len(list(place.iterdir())) == world.size)


def loopback_bytes() -> int:
    """Bytes sent over the loopback of this network namespace since it was made."""
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])


def in_own_network(folder: Path) -> list[dict[str, float]]:
    """``count_and_measure`` on two ranks in a network namespace where nobody else sends; skips where there can be none."""
    script = f"""
import fcntl, json, pathlib, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
from helpers import in_group
from test_run_wire import count_and_measure
if __name__ == "__main__":
    print(json.dumps(in_group(2, count_and_measure, pathlib.Path({str(folder)!r}), {str(folder)!r})))
"""
    command = ["unshare", "--net", sys.executable, "-c", script]
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        pytest.skip("a network namespace takes root")
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, float]] = json.loads(done.stdout)
    return found


def test_accumulating_sends_nothing_by_the_counter(tmp_path: Path) -> None:
    for rank in in_group(2, count_and_measure, tmp_path, str(tmp_path)):
        assert (rank["accumulating"], rank["reducing"]) == (0, 4 * WIDTH * WIDTH)
        assert rank["gradient"] == 2 * (BACKWARDS + 1) * WIDTH * WIDTH, "what was accumulated is reduced with the last"


def test_accumulating_sends_nothing_by_the_kernels_count(tmp_path: Path) -> None:
    for rank in in_own_network(tmp_path):
        assert rank["loopback_accumulating"] == 0
        both = 2 * rank["reducing"]
        assert both <= rank["loopback_reducing"] <= 1.05 * both
