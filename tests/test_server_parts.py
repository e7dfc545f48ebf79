"""The parts of a parameter server, without processes: shards and boxes, the desk, pushes and pulls between threads."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_pool import job
from torch import Tensor, nn

from dml_runner.checkpoint.pieces import boxes
from dml_runner.comm.pairs import Pair, Within, within
from dml_runner.parallel.desk import Desk
from dml_runner.parallel.push_pull import PushPull
from dml_runner.parallel.server import Server, Share
from dml_runner.parallel.shards import Segment, Shards
from dml_runner.planning.shape import measure

# --- shards and boxes --------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@given(SIZES, st.integers(1, 5), st.integers(1, 50))
def test_shards_hold_every_element_once_and_segments_name_it(sizes: list[int], servers: int, bucket: int) -> None:
    shards = Shards(sizes, servers, bucket)
    elements = [(parameter, at) for parameter, size in enumerate(sizes) for at in range(size)]
    held: list[tuple[int, int]] = []
    for number, whole in enumerate(shards.buckets):
        parts = [shards.part(number, server) for server in range(servers)]
        assert (parts[0].start, parts[-1].stop) == (whole.start, whole.stop)
        assert max(part.size for part in parts) - min(part.size for part in parts) <= 1
        for part in parts:
            for segment in shards.segments(part):
                assert segment.inside.size == segment.row.size > 0
                found = [(segment.parameter, at) for at in range(segment.inside.start, segment.inside.stop)]
                assert found == elements[segment.row.start : segment.row.stop]
                held += found
                assert number in shards.buckets_of(segment.parameter)
    assert held == elements
    assert sum(span.size for server in range(servers) for span in shards.share(server)) == shards.size
    for parameter, size in enumerate(sizes):
        assert len(shards.buckets_of(parameter)) <= max(1, size)
        assert bool(shards.buckets_of(parameter)) == bool(size)


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_boxes_are_the_elements_of_a_flat_span_in_order(shape: list[int], data: st.DataObject) -> None:
    size = prod(shape)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    whole = torch.arange(size).view(shape)
    found: list[int] = []
    for box in boxes(tuple(shape), start, stop):
        assert box.fits(tuple(shape))
        assert box.size
        found += whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.shape, strict=True))].flatten().tolist()
    assert found == list(range(start, stop))


REAL: dict[str, tuple[str, ...]] = {
    "gpt2_124m": (),
    "bert_large": ("data.tokenizer=null", "data.vocab_size=200", "data.seq_len=16"),
    "resnet50": ("model.classes=null",),
    "rnn": ("data.tokenizer=null", "data.vocab_size=200", "data.seq_len=null", "model.bptt=8"),
}


@pytest.mark.parametrize("model", REAL)
def test_servers_hold_equal_shares_of_real_models(tmp_path: Path, model: str) -> None:
    of = job(tmp_path, f"model={model}", *("data=digits",) if model.startswith("resnet") else (), *REAL[model])
    sizes = [each.size for each in reversed(measure(of.run, of.facts).tensors)]
    for servers in range(1, 6):
        shards = Shards(sizes, servers, 2**20)
        shares = [sum(span.size for span in shards.share(server)) for server in range(servers)]
        assert sum(shares) == sum(sizes)
        assert max(shares) * servers <= 1.1 * sum(shares)


# --- the desk ----------------------------------------------------------------------------------------------------------------


def visit(desk: Desk, workers: int, until: int, seed: int, leaver: int | None = None, closer: int | None = None) -> list[int]:
    """Workers in threads, each of its own speed, take tickets until there are none; returns those that were done."""
    done: list[int] = []
    ends: list[int] = []

    def work(worker: int) -> None:
        pace, taken = random.Random(f"{seed} {worker}"), 0
        while True:
            closing = worker == closer and taken >= 3
            ticket, last, _ = desk.take(worker, until, closing)
            if not ticket:
                ends.append(last)
                return
            taken += 1
            if worker == leaver and taken == 3:
                desk.leave(worker)
                return
            if pace.random() < 0.3:
                threading.Event().wait(pace.random() * 0.002 * (1 + 3 * (worker == 0)))
            done.append(ticket)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "nobody is held back for ever"
    assert len(set(ends)) <= 1, "all stop after the same step"
    return done


@pytest.mark.parametrize("staleness", [0, 1, 3, None])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_tickets_are_handed_out_once_each_and_nobody_is_further_ahead_than_the_bound(workers: int, staleness: int | None) -> None:
    for seed in range(8):
        desk = Desk(range(workers), workers, staleness)
        desk.begin_after(2)
        done = visit(desk, workers, 8, seed)
        done += visit(desk, workers, 12, seed + 100)
        assert sorted(done) == list(range(2 * workers + 1, 12 * workers + 1)), "each slice of steps 3 to 12 once"
        assert staleness is None or desk.widest_gap <= staleness


def test_without_a_bound_a_fast_worker_takes_all_there_is() -> None:
    desk = Desk([0, 1], 2, None)
    assert [desk.take(0, 3, False)[:2] for _ in range(7)] == [*((ticket, 3) for ticket in range(1, 7)), (0, 3)]
    assert desk.take(1, 3, False) == (0, 3, False)
    assert desk.widest_gap == 5


def test_who_was_held_back_learns_that_its_weights_are_too_old() -> None:
    desk = Desk([0, 1], 2, 1)
    assert [desk.take(worker, 9, False) for worker in (1, 0, 0)] == [(1, 9, False), (2, 9, False), (3, 9, False)]
    held: list[tuple[int, int, bool]] = []
    waiting = threading.Thread(target=lambda: held.append(desk.take(0, 9, False)), daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive(), "two pushes ahead"
    assert desk.take(1, 9, False)[2] is False
    waiting.join(20)
    assert held[0][2] is True
    assert desk.take(1, 9, False)[2] is False
    assert desk.take(0, 9, False)[2] is False, "told once"


def test_closing_ends_after_the_steps_that_were_begun() -> None:
    desk = Desk([0, 1, 2], 3, None)
    assert desk.take(0, 9, False) == (1, 9, False)
    assert desk.take(1, 9, True) == (2, 1, False), "step 1 was begun: it is finished"
    assert desk.take(2, 9, False) == (3, 1, False)
    assert [desk.take(worker, 9, False) for worker in range(3)] == [(0, 1, False)] * 3
    fresh = Desk([0], 3, None)
    fresh.begin_after(5)
    assert fresh.take(0, 9, True) == (0, 5, False), "nothing was begun"
    for seed in range(5):
        done = visit(Desk(range(3), 3, 2), 3, 50, seed, closer=1)
        assert sorted(done) == list(range(1, len(done) + 1))
        assert len(done) % 3 == 0
        assert len(done) < 150


@pytest.mark.parametrize("staleness", [0, 3, None])
def test_the_slice_of_a_worker_that_died_is_handed_out_again_and_holds_nobody_back(staleness: int | None) -> None:
    for seed in range(8):
        done = visit(Desk(range(3), 3, staleness), 3, 10, seed, leaver=2)
        assert Counter(done) == Counter(range(1, 31))


# --- pushes and pulls, with a worker or a server in each thread --------------------------------------------------------------


class Net(nn.Module):
    """Two blocks between an embedding and an output that are one matrix; one bias is frozen, one weight is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Parameter(torch.randn(7, 6) / 2)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.unused = nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch,) -> (batch, 7)."""
        x = self.table[tokens] + self.frozen
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x @ self.table.T


def loss_of(net: nn.Module, tokens: Tensor) -> Tensor:
    """The sum over a batch of what predicting the next number costs."""
    return nn.functional.cross_entropy(net(tokens), (tokens + 1) % 7, reduction="sum")


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW([{"params": parameters, "share": 1.0}], lr=0.01, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD([{"params": parameters, "share": 1.0}], lr=0.05, momentum=0.9),
}
STEPS, RATE = 12, {"adamw": 0.01, "sgd": 0.05}


def batches(step: int) -> Tensor:
    """Twelve samples."""
    return torch.randint(0, 7, (12,), generator=torch.Generator().manual_seed(step))


def alone(optimizer: str, clip_norm: float | None) -> tuple[list[float], list[float], Net]:
    """Losses, norms and the net of plain torch in one process."""
    net, losses, norms = Net(), [], []
    parameters = [p for p in net.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    update = OPTIMIZERS[optimizer](parameters)
    for step in range(STEPS):
        total = loss_of(net, batches(step))
        (total / 12).backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        update.step()
        for p in parameters:
            assert p.grad is not None
            p.grad.zero_()
        losses.append(total.item())
    return losses, norms, net


class Sum:
    """A sum over the threads of servers."""

    def __init__(self, servers: int) -> None:
        self._barrier, self._values = threading.Barrier(servers), [0.0] * servers

    def of(self, server: int) -> Callable[[float], float]:
        """What the server calls with its number."""

        def total(value: float) -> float:
            self._values[server] = value
            self._barrier.wait(20)
            found = sum(self._values)
            self._barrier.wait(20)
            return found

        return total


def served(workers: int, servers: int, bucket: int, optimizer: str, clip_norm: float | None) -> tuple[list[float], list[float], list[Net]]:
    """The same by workers and servers, each in a thread; a worker's share of the batch comes in two micro-batches."""
    nets = [Net() for _ in range(workers)]
    trained = [[p for p in reversed(list(net.parameters())) if p.requires_grad] for net in nets]
    shards = Shards([p.numel() for p in trained[0]], servers, bucket)
    pairs = [[within() for _ in range(servers)] for _ in range(workers)]
    row = torch.cat([p.detach().flatten() for p in trained[0]])
    total, summed, norms = Sum(servers), [0.0] * STEPS, [0.0] * STEPS

    def start(segment: Segment) -> Tensor:
        return row[segment.row.start : segment.row.stop]

    def serve(number: int) -> None:
        share = Share(shards, number, start, lambda segments: OPTIMIZERS[optimizer]([p for p, _ in segments]))
        ends: list[Pair] = [pairs[worker][number][1] for worker in range(workers)]
        server = Server(share, ends, clip_norm, total.of(number), None)
        for _ in range(STEPS):
            server.step(RATE[optimizer])

    def work(number: int) -> None:
        ends: list[Within] = [mine for mine, _ in pairs[number]]
        exchange = PushPull(nets[number], nets[number].blocks, trained[number], shards, ends)
        for step in range(STEPS):
            first, second = batches(step).chunk(workers)[number].chunk(2)
            with exchange.accumulate():
                losses = loss_of(exchange.module, first)
                (losses / 12).backward()
            more = loss_of(exchange.module, second)
            (more / 12).backward()
            exchange.finish()
            with lock:
                summed[step] += float((losses + more).detach())
            if number == 0 and step % 3 == 2:  # a norm that is not asked for each time is still that of one step
                norms[step] = exchange.norm()
        exchange.wait()

    lock = threading.Lock()
    threads = [threading.Thread(target=serve, args=(n,), daemon=True) for n in range(servers)]
    threads += [threading.Thread(target=work, args=(n,), daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    return summed, norms, nets


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_workers_servers_and_buckets_train_as_plain_torch(optimizer: str, clip_norm: float | None) -> None:
    """A tied weight is pushed once, after both its uses; what no backward touches is pushed as zeros, as plain torch sees it."""
    losses, norms, net = alone(optimizer, clip_norm)
    for workers, servers, bucket in [(1, 1, 1000), (2, 1, 10), (3, 2, 7), (2, 3, 30), (1, 5, 1), (3, 4, 64)]:
        found, lengths, nets = served(workers, servers, bucket, optimizer, clip_norm)
        assert found == pytest.approx(losses, abs=1e-4), (workers, servers, bucket)
        assert lengths[2::3] == pytest.approx(norms[2::3], rel=1e-3), (workers, servers, bucket)
        for other in nets:
            assert torch.equal(other.table, nets[0].table)
            for mine, theirs in zip(other.parameters(), net.parameters(), strict=True):
                assert torch.allclose(mine, theirs, atol=1e-5)
