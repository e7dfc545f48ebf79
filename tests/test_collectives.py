"""Collectives: equal to numpy, the same bits on every rank, the bytes of the laws, and an end when a peer dies."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import in_group

from dml_runner.comm import collectives, laws, ring
from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links, PeerLost
from dml_runner.comm.trees import two_trees
from dml_runner.comm.world import World
from dml_runner.errors import ConfigError
from dml_runner.launch.request import main_left_out, preload

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64),
)
NOT_OF_GLOO = (torch.int16, torch.complex64)
ROOTED = ("broadcast", "reduce", "gather")
MOVING = ("broadcast", "gather", "all_gather")
CASES = [(algorithm, collective) for algorithm, has in laws.ALGORITHMS.items() for collective in has]
LAST = 10**6


# --- what every rank of five does ----------------------------------------------------------------------------------------


def groups(world: World) -> Iterator[Links]:
    """The first n ranks, n from 1 to all: as a group of their own, which the backend needs."""
    for ranks in range(1, world.size + 1):
        group = dist.new_group(list(range(ranks)), timeout=timedelta(seconds=30))
        if world.rank < ranks:
            yield Links(group, Sent())


@cache
def numbers(size: int, rank: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """What ``rank`` brings: small whole numbers, so that every type and every order of summing is exact."""
    return ((np.arange(size) * (rank + 1) + rank) % 8).astype(np.int16)


@cache
def total(size: int, ranks: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """What numpy says the ranks bring together."""
    together: np.ndarray[Any, np.dtype[np.int16]] = np.sum([numbers(size, rank) for rank in range(ranks)], axis=0, dtype=np.int16)
    return together


def mine(size: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    """What ``rank`` brings, as a tensor."""
    return torch.from_numpy(numbers(size, rank)).to(dtype, copy=True)


def expected(collective: str, size: int, ranks: int, rank: int, root: int) -> np.ndarray[Any, np.dtype[np.int16]] | None:
    """What this rank ends with; None where nothing is promised."""
    cuts = laws.bounds(size, ranks)
    if collective == "reduce_scatter":
        return total(size, ranks)[cuts[rank] : cuts[rank + 1]]
    if collective == "all_gather" or (collective == "gather" and rank == root):
        return np.concatenate([numbers(size, other)[cuts[other] : cuts[other + 1]] for other in range(ranks)])
    if collective == "all_reduce" or (collective == "reduce" and rank == root):
        return total(size, ranks)
    return numbers(size, root) if collective == "broadcast" else None


def wrong_in(links: Links, algorithm: str, collective: str, size: int, dtype: torch.dtype) -> Iterator[str]:
    """What one collective got wrong on this rank."""
    root = links.size // 2 if collective in ROOTED else 0
    node = max(size for size in (1, 2, 5) if links.size % size == 0) if algorithm == "hierarchical" else None
    words: dict[str, Any] = {"root": root} if collective in ROOTED else {"node": node} if node else {}
    if algorithm != "backend" and collective != "gather" and size < LAST:
        words["chunk_bytes"] = 8
    tensor = mine(size, links.rank, dtype)
    links.sent.take()
    out = getattr(collectives, collective)(links, tensor, algorithm, **words)
    sent = links.sent.take()
    want, got = expected(collective, size, links.size, links.rank, root), tensor if out is None else out
    case = f"{collective} by {algorithm} of {size} {dtype} on {links.size}"
    if want is not None and not torch.equal(got, torch.from_numpy(want).to(dtype)):
        yield f"{case}: rank {links.rank} has {got}, not {want}"
    law = laws.traffic(collective, algorithm, size, tensor.element_size(), links.size, root, node)
    if sent != law.sent[links.rank]:
        yield f"{case}: rank {links.rank} sent {sent}, not {law.sent[links.rank]}"


def against_numpy(world: World) -> list[str]:
    """Every collective, algorithm, type and size on the first n ranks of five; what is wrong, in words."""
    wrong: list[str] = []
    for links in groups(world):
        for number, (algorithm, collective) in enumerate(CASES):
            types = [each for each in DTYPES if algorithm != "backend" or each not in NOT_OF_GLOO]
            for at, dtype in enumerate(types):
                # Every type has every size; a million elements of it come to each collective on some of the group sizes only.
                sizes = (*((0,) if at == 0 else ()), 1, 7, *((LAST,) if at % 5 == (number + links.size) % 5 else ()))
                for size in sizes:
                    wrong += wrong_in(links, algorithm, collective, size, dtype)
            if collective in MOVING:
                wrong += wrong_in(links, algorithm, collective, 7, torch.bool)
    return wrong


def test_equal_to_numpy_with_the_bytes_of_the_laws(tmp_path: Path) -> None:
    wrong = [each for rank in in_group(5, against_numpy, tmp_path) for each in rank]
    assert not wrong, "\n".join(wrong[:20])


def sums_of_random_numbers(world: World) -> list[Any]:
    """The bits of two sums of the same random numbers by each algorithm, and how far the first is from numpy's."""
    links = Links(dist.group.WORLD, Sent())
    given = [torch.randn(10_007, generator=torch.Generator().manual_seed(rank)) for rank in range(links.size)]
    exact = np.sum([each.double().numpy() for each in given], axis=0)
    found: list[Any] = []
    for algorithm in ("ring", "tree", "hierarchical"):
        sums = [given[links.rank].clone() for _ in range(2)]
        for each in sums:
            collectives.all_reduce(links, each, algorithm, node=2, chunk_bytes=4096)
        found.append((sums[0].numpy().tobytes(), sums[1].numpy().tobytes(), float(np.abs(sums[0].numpy() - exact).max())))
    return [*found, *beside_each_other(links)]


def beside_each_other(links: Links) -> list[bool]:
    """Two threads sum at once, each under a tag of its own, and the main thread computes until they are done."""
    sums = [torch.full((300_000,), float(links.rank + number)) for number in range(2)]
    parts = [links.part(range(links.size), tag=number + 1) for number in range(2)]
    threads = [threading.Thread(target=ring.all_reduce, args=(part, each, 1 << 14)) for part, each in zip(parts, sums, strict=True)]
    computed = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        torch.ones(1000).sum()
        computed += 1
    whole = sum(range(links.size))
    return [computed > 0, *(bool((each == whole + number * links.size).all()) for number, each in enumerate(sums))]


def test_all_ranks_end_with_the_same_bits_and_threads_do_not_mix(tmp_path: Path) -> None:
    ranks = in_group(4, sums_of_random_numbers, tmp_path)
    for at in range(3):
        assert len({bits for rank in ranks for bits in rank[at][:2]}) == 1
        assert ranks[0][at][2] < 4e-6
    assert [rank[3:] for rank in ranks] == [[True] * 3] * 4


# --- a peer dies ---------------------------------------------------------------------------------------------------------


def until_someone_dies(rank: int, ranks: int, store: str, tell: Connection) -> None:
    """Sum until it fails, and tell with what; rank 1 only says that it runs."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=20))
    links, tensor = Links(dist.group.WORLD, Sent()), torch.zeros(500_000)
    for turn in range(100_000):
        try:
            collectives.all_reduce(links, tensor, "ring" if turn % 2 else "tree")
        except PeerLost as error:
            tell.send((error.peers, str(error)))
            os._exit(0)  # as a failed rank does: the group cannot be closed in order
        if turn == 3:
            tell.send("running")


def test_a_dead_peer_is_an_error_at_once(tmp_path: Path) -> None:
    preload()
    forks = multiprocessing.get_context("forkserver")
    pipes = [forks.Pipe(duplex=False) for _ in range(3)]
    processes = [
        forks.Process(target=until_someone_dies, args=(rank, 3, str(tmp_path / "store"), pipes[rank][1]), daemon=True) for rank in range(3)
    ]
    with main_left_out():
        for process in processes:
            process.start()
    try:
        assert [pipe.recv() if pipe.poll(30) else None for pipe, _ in pipes] == ["running"] * 3
        os.kill(processes[1].pid or 0, signal.SIGKILL)
        killed = time.monotonic()
        told = [pipes[rank][0].recv() if pipes[rank][0].poll(15) else None for rank in (0, 2)]
        assert time.monotonic() - killed < 5
        assert all(each is not None and each[1].startswith("no more word from rank ") for each in told), told
        assert any(each[0] == (1,) for each in told if each is not None)
    finally:
        for process in processes:
            process.kill()
            process.join()


# --- refusals ------------------------------------------------------------------------------------------------------------


def refusal(collective: str, tensor: torch.Tensor, algorithm: str, ranks: int = 1, **words: Any) -> str:
    """What ``collective`` says against its words, before anything is sent."""
    links = Links(None, Sent())
    links.size = ranks
    with pytest.raises(ConfigError) as caught:
        getattr(collectives, collective)(links, tensor, algorithm, **words)
    return str(caught.value)


def test_refusals_say_what_would_do() -> None:
    numbers, truths = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    assert refusal("all_reduce", numbers, "star") == (
        "algorithm: there is no such all_reduce; got star; allowed backend, ring, tree, hierarchical"
    )
    assert refusal("gather", numbers, "tree") == "algorithm: there is no such gather; got tree; allowed backend, ring"
    assert refusal("all_reduce", numbers, "hierarchical", ranks=6, node=4) == (
        "node: 6 ranks do not fill nodes of this many; got 4; allowed 1, 2, 3, 6"
    )
    for algorithm, collective in CASES:
        if collective not in MOVING:
            said = refusal(collective, truths, algorithm)
            assert said.startswith("tensor: this type is not summed over ranks; got bool; allowed float16, bfloat16"), said
    assert "got float8_e4m3fn" in refusal("reduce", numbers.to(torch.float8_e4m3fn), "ring")


def test_alone_there_is_nothing_to_do() -> None:
    links = Links(None, Sent())
    for algorithm, collective in CASES:
        tensor = torch.arange(5)
        out = getattr(collectives, collective)(links, tensor, algorithm)
        assert torch.equal(tensor if out is None else out, torch.arange(5))
    assert links.sent.take() == 0
    assert links.part([0]) is not None


# --- laws ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", range(1, 41))
def test_who_is_inside_one_tree_is_a_leaf_of_the_other(ranks: int) -> None:
    for root in (None, ranks // 2):
        trees = two_trees(ranks, root)
        for tree in trees:
            assert tree.height(tree.root) <= math.log2(ranks) + 1
            assert max(len(tree.children(rank)) for rank in range(ranks)) <= 2
            assert sorted(rank for rank in range(ranks) if tree.depth(rank) >= 0) == list(range(ranks))
        inner = [{rank for rank in range(ranks) if tree.children(rank) and rank != root} for tree in trees]
        assert not inner[0] & inner[1]
        assert root is None or [tree.root for tree in trees] == [root, root]


def test_the_laws_in_closed_form() -> None:
    size, ranks, width = 1200, 4, 4
    whole = size * width

    def most(collective: str, algorithm: str) -> float:
        return laws.traffic(collective, algorithm, size, width, ranks, node=2).most_sent / whole

    assert {name: most(name, "ring") for name in laws.COLLECTIVES} == {
        "all_reduce": 1.5,
        "reduce_scatter": 0.75,
        "all_gather": 0.75,
        "broadcast": 1,
        "reduce": 1,
        "gather": 0.25,
    }
    assert [most(name, "tree") for name in ("all_reduce", "broadcast", "reduce")] == [2, 1, 1]
    assert most("all_reduce", "hierarchical") == 1.5
    # gloo's, as read at the interfaces of four hosts
    assert [most(name, "backend") for name in ("all_reduce", "reduce_scatter", "all_gather", "broadcast")] == [1.5, 1.5, 0.75, 2]
    # Inside nodes of two, S goes over the links; between two nodes half of S: ten times slower, half as much.
    assert laws.hierarchical_seconds(size, width, ranks, 2, 1000.0, 100.0) == pytest.approx(whole / 1000 + whole / 2 / 100)


@pytest.mark.parametrize(("algorithm", "collective"), CASES)
def test_no_algorithm_is_below_the_least(algorithm: str, collective: str) -> None:
    for ranks in range(1, 9):
        moved = laws.traffic(collective, algorithm, 840, 4, ranks, ranks // 2, ranks)
        assert sum(moved.sent) == sum(moved.received)
        assert moved.seconds(50.0) >= laws.least_seconds(collective, 840 * 4, ranks, 50.0) * (1 - 1e-12)
