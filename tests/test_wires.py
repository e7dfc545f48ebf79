"""Low-bit wires: sums within their bands, the bytes of the law, equal bits on all ranks, and errors that are made good later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from math import prod
from typing import Any

import pytest
import torch
from helpers import in_group
from torch import Tensor

from dml_runner.comm import ring, tree
from dml_runner.comm.counter import Sent
from dml_runner.comm.laws import bounds
from dml_runner.comm.links import Links
from dml_runner.comm.wires.base import Wire
from dml_runner.comm.wires.laws import BLOCKS, WIRES, memory_bytes, traffic
from dml_runner.comm.wires.open import open_wire
from dml_runner.comm.world import World

RANKS = 3
BUCKETS: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((48, 40), (48,), (3, 3)),
    ((64, 5, 4, 4), (64,)),
    ((1000,), (30, 2, 30), (200, 11)),
)
"""Buckets of gradients as models have them: matrices, convolutions, biases, and a matrix too small for factors."""
REMEMBER = ("int8", "onebit", "powersgd")
LEARNERS = ((None, True), *((name, True) for name in REMEMBER), ("onebit", False), ("powersgd", False))
BANDS = {"fp16": 5e-4, "bf16": 6e-3, "int8": 1.5e-2, "onebit": 1.3, "powersgd": 1e-4}
"""Error of one sum, as a length relative to the sum's. The matrices have rank 1, which powersgd sends exactly but for rounding."""


# --- gradients -----------------------------------------------------------------------------------------------------------


def gradient(shape: tuple[int, ...], rank: int, *seed: int) -> Tensor:
    """A gradient of one rank; as a matrix it has rank 1, as has the sum over the ranks."""
    mine, common = torch.Generator().manual_seed(hash((rank, *seed))), torch.Generator().manual_seed(hash(seed))
    values = torch.randn(shape[0], generator=mine)
    return values if len(shape) == 1 else torch.outer(values, torch.randn(prod(shape[1:]), generator=common))


def bucket(shapes: Iterable[tuple[int, ...]], rank: int, *seed: int) -> Tensor:
    """The gradients of one rank, flat."""
    return torch.cat([gradient(shape, rank, at, *seed).flatten() for at, shape in enumerate(shapes)])


def views(flat: Tensor, shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
    """The gradients in a flat bucket."""
    shapes = list(shapes)
    return [piece.view(shape) for piece, shape in zip(flat.split([prod(shape) for shape in shapes]), shapes, strict=True)]


def exact(shapes: Iterable[tuple[int, ...]], *seed: int) -> Tensor:
    """The sum over all ranks."""
    return torch.stack([bucket(shapes, rank, *seed) for rank in range(RANKS)]).sum(0)


def digest(tensors: Iterable[Tensor]) -> str:
    """A word that tells whether bits differ."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


# --- what every rank does ------------------------------------------------------------------------------------------------


def run_all(world: World) -> dict[str, Any]:
    """All that the tests look at, from one start of the ranks."""
    torch.set_num_threads(1)
    links = Links(world.control, world.sent)
    found: dict[str, Any] = {f"sums {name}": sums(links, name) for name in WIRES}
    found |= {f"tree {name}": sums(links, name, "tree") for name in ("fp16", "powersgd")}
    found |= {f"small {name}": small_buckets(links, name) for name in WIRES}
    found |= {f"not finite {name}": not_finite(links, name) for name in WIRES}
    found |= {f"kept {name}": kept(links, name) for name in REMEMBER}
    found |= {f"resumed {name}": resumed(links, name) for name in WIRES}
    found |= {f"loss {name} {feedback}": learn(links, name, feedback) for name, feedback in LEARNERS}
    return found


def sums(links: Links, name: str, algorithm: str = "ring") -> dict[str, Any]:
    """Two steps of three buckets, as a model's backward would hand them over."""
    wire, errors, sent, results = open_wire(name, {"ring": ring, "tree": tree}[algorithm].all_reduce), [], [], []
    for step in range(2):
        for key, shapes in enumerate(BUCKETS):
            flat = bucket(shapes, links.rank, step)
            links.sent.take()
            wire.all_reduce(links, key, flat, views(flat, shapes))
            sent.append(links.sent.take())
            results.append(flat)
            expected = exact(shapes, step)
            errors.append(float((flat - expected).norm() / expected.norm()))
    memory = sum(tensor.nbytes for _, tensor in wire.state())
    return {"errors": errors, "sent": sent, "bits": digest(results), "memory": memory}


def small_buckets(links: Links, name: str) -> dict[str, Any]:
    """Buckets with fewer values than ranks, or a few more."""
    wire, sent, results = open_wire(name, ring.all_reduce), [], []
    for values in (1, 2, 7):
        flat = torch.full((values,), links.rank + 1.0)
        links.sent.take()
        wire.all_reduce(links, values, flat, [flat])
        sent.append(links.sent.take())
        results.append(flat)
    return {"sent": sent, "worst": float((torch.cat(results) - 6.0).abs().max()), "bits": digest(results)}


def not_finite(links: Links, name: str) -> list[tuple[bool, bool]]:
    """Whether one rank's bad value stays bad on all; and whether the next step is finite."""
    shapes, wire, found = BUCKETS[0], open_wire(name, ring.all_reduce), []
    for bad in (float("nan"), -float("inf")):
        for place in (777, 48 * 40 + 5):
            flat = bucket(shapes, links.rank, 0)
            if links.rank == 1:
                flat[place] = bad
            wire.all_reduce(links, 0, flat, views(flat, shapes))
            after = bucket(shapes, links.rank, 1)
            wire.all_reduce(links, 0, after, views(after, shapes))
            found.append((bool(flat[place].isfinite()), bool(after.isfinite().all())))
    return found


def kept(links: Links, name: str) -> float:
    """After five steps: what came out, plus what all ranks remember, against what went in."""
    shapes, wire = BUCKETS[0], open_wire(name, ring.all_reduce)
    out, put_in = torch.zeros_like(exact(shapes, 0)), torch.zeros_like(exact(shapes, 0))
    for step in range(5):
        # noise gives the matrix full rank
        flat = bucket(shapes, links.rank, step) + torch.randn(out.shape, generator=torch.Generator().manual_seed(links.rank))
        put_in += flat
        wire.all_reduce(links, 4, flat, views(flat, shapes))
        out += flat
    remembered, state = torch.zeros_like(out), dict(wire.state())
    if name == "powersgd":
        remembered[: 48 * 40] = state["4/0/error"].flatten()
    else:
        for peer, (start, end) in enumerate(zip(cuts := bounds(out.numel(), links.size), cuts[1:], strict=False)):
            remembered[start:end] = state["4/sum" if peer == links.rank else f"4/{peer}"]
    ring.all_reduce(links, put_in)
    ring.all_reduce(links, remembered)
    return float((out + remembered - put_in).norm() / put_in.norm())


def resumed(links: Links, name: str) -> dict[str, Any]:
    """The bits of one more step: going on, going on from what was remembered, and forgetting it."""

    def run(wire: Wire, step: int) -> str:
        results = []
        for key, shapes in enumerate(BUCKETS):
            flat = bucket(shapes, links.rank, step).sin()  # of full rank, or powersgd would have nothing to remember
            wire.all_reduce(links, key, flat, views(flat, shapes))
            results.append(flat)
        return digest(results)

    one, other, forgetful = (open_wire(name, ring.all_reduce) for _ in range(3))
    run(one, 0)
    saved = {key: tensor.clone() for key, tensor in one.state()}
    other.restore(saved)
    return {"on": run(one, 1), "resumed": run(other, 1), "fresh": run(forgetful, 1), "names": sorted(saved)}


def learn(links: Links, name: str | None, feedback: bool) -> float:
    """The loss of a linear regression after 50 steps; each rank's samples have a solution of their own, and unequal features."""
    common = torch.Generator().manual_seed(0)
    target = torch.randn(24, 40, generator=common) / 2
    own = torch.Generator().manual_seed(links.rank + 1)
    x = torch.randn(64, 40, generator=own) * 0.8 ** torch.arange(40.0)
    y = x @ (target + torch.randn(24, 40, generator=own) / 4).T
    weights, wire = torch.zeros(24, 40), None if name is None else open_wire(name, ring.all_reduce, feedback=feedback)
    for _ in range(50):
        flat = ((x @ weights.T - y).T @ x / (RANKS * 64 * 12)).flatten()
        if wire is None:
            ring.all_reduce(links, flat)
        else:
            wire.all_reduce(links, 0, flat, [flat.view(24, 40)])
        weights -= flat.view(24, 40)
    loss = (x @ weights.T - y).square().mean().view(1) / RANKS
    ring.all_reduce(links, loss)
    return float(loss)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the ranks found."""
    return in_group(RANKS, run_all, tmp_path_factory.mktemp("wires"))


# --- tests ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WIRES)
def test_sums_are_within_the_band_of_their_wire(ranks: list[dict[str, Any]], name: str) -> None:
    first_step = ranks[0][f"sums {name}"]["errors"][: len(BUCKETS)]
    assert max(first_step) < BANDS[name]


@pytest.mark.parametrize("what", [*(f"sums {name}" for name in WIRES), *(f"small {name}" for name in WIRES), "tree fp16", "tree powersgd"])
def test_all_ranks_end_with_the_same_bits(ranks: list[dict[str, Any]], what: str) -> None:
    assert len({rank[what]["bits"] for rank in ranks}) == 1


@pytest.mark.parametrize("name", WIRES)
def test_what_is_sent_is_what_the_law_says(ranks: list[dict[str, Any]], name: str) -> None:
    for number, rank in enumerate(ranks):
        assert rank[f"sums {name}"]["sent"] == 2 * [traffic(name, shapes, RANKS).sent[number] for shapes in BUCKETS]
        assert rank[f"small {name}"]["sent"] == [traffic(name, [(values,)], RANKS).sent[number] for values in (1, 2, 7)]
    for name in ("fp16", "powersgd"):
        by_law = [traffic(name, shapes, RANKS, "tree").sent for shapes in BUCKETS]
        assert [list(each) for each in zip(*(rank[f"tree {name}"]["sent"][:3] for rank in ranks), strict=True)] == [list(s) for s in by_law]


@pytest.mark.parametrize(("name", "bits"), [("fp16", 16), ("bf16", 16), ("int8", 8), ("onebit", 1)])
def test_the_law_is_the_wires_bits_of_a_ring(name: str, bits: int) -> None:
    for workers in (2, 4, 7):
        fp32 = 2 * (workers - 1) / workers * 4 * 1024 * 999
        scales = 1 + 32 / bits / BLOCKS[name] if name in BLOCKS else 1
        assert traffic(name, [(1024, 999)], workers).most_sent == pytest.approx(fp32 * bits / 32 * scales, rel=0.005)
        assert scales < 1.05


def test_the_law_of_powersgd_is_that_of_its_factors() -> None:
    fp32 = traffic("powersgd", [(1024 * 512,)], 4).most_sent
    assert fp32 == 2 * 3 * 1024 * 512
    for power_rank in (1, 4):
        assert traffic("powersgd", [(1024, 512)], 4, power_rank=power_rank).most_sent == power_rank * (1024 + 512) * 6


@pytest.mark.parametrize("name", WIRES)
def test_the_law_of_memory_holds(ranks: list[dict[str, Any]], name: str) -> None:
    values = sum(prod(shape) for shapes in BUCKETS for shape in shapes)
    for rank in ranks:
        found = rank[f"sums {name}"]["memory"]
        assert found == pytest.approx(sum(memory_bytes(name, shapes, RANKS) for shapes in BUCKETS), abs=0)
        assert found <= 4 * values * 1.1


@pytest.mark.parametrize("name", WIRES)
def test_the_smallest_buckets_are_summed(ranks: list[dict[str, Any]], name: str) -> None:
    assert ranks[1][f"small {name}"]["worst"] < 0.05


@pytest.mark.parametrize("name", WIRES)
def test_what_is_not_finite_is_seen_on_all_ranks_and_spoils_no_later_step(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        assert set(rank[f"not finite {name}"]) == {(False, True)}


@pytest.mark.parametrize("name", REMEMBER)
def test_nothing_is_lost_but_late(ranks: list[dict[str, Any]], name: str) -> None:
    assert ranks[0][f"kept {name}"] < 1e-5


@pytest.mark.parametrize("name", WIRES)
def test_a_resumed_wire_goes_on_bit_by_bit(ranks: list[dict[str, Any]], name: str) -> None:
    for number, rank in enumerate(ranks):
        found = rank[f"resumed {name}"]
        assert found["resumed"] == found["on"]
        assert (found["fresh"] != found["on"]) == (name in REMEMBER)
        if name == "powersgd":
            assert found["names"] == [
                "0/0/error",
                "0/0/right",
                "1/0/error",
                "1/0/right",
                "2/1/error",
                "2/1/right",
                "2/2/error",
                "2/2/right",
            ]
        elif name in REMEMBER:
            parts = ["sum", *(str(peer) for peer in range(RANKS) if peer != number)]
            assert found["names"] == sorted(f"{key}/{part}" for key in range(3) for part in parts)
        else:
            assert found["names"] == []


@pytest.mark.parametrize(("name", "above"), [("int8", 1.001), ("onebit", 1.2), ("powersgd", 1.02)])
def test_with_error_feedback_the_loss_is_that_of_fp32(ranks: list[dict[str, Any]], name: str, above: float) -> None:
    fp32 = ranks[0]["loss None True"]
    assert fp32 / above < ranks[0][f"loss {name} True"] < fp32 * above


@pytest.mark.parametrize(("name", "times"), [("onebit", 2.5), ("powersgd", 1.8)])
def test_without_error_feedback_it_is_far_higher(ranks: list[dict[str, Any]], name: str, times: float) -> None:
    assert ranks[0][f"loss {name} False"] > times * ranks[0]["loss None True"]


@pytest.mark.parametrize("name", WIRES)
def test_alone_nothing_is_rounded_or_remembered(name: str) -> None:
    wire, flat = open_wire(name, ring.all_reduce), torch.randn(500)
    before = flat.clone()
    wire.all_reduce(Links(None, Sent()), 0, flat, [flat.view(20, 25)])
    assert torch.equal(flat, before)
    assert dict(wire.state()) == {}
    assert traffic(name, [(20, 25)], 1).sent == (0,)
