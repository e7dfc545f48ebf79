"""Which samples form step k, and whose they are: a function of the seed and k, whatever the ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_runner.data.parts.order import SampleOrder, StreamOrder, eval_shares, permutation, slice_of

counts = st.integers(1, 50)


@given(samples=counts, batch=counts, seed=st.integers(0, 2**70), epochs=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_each_epoch_is_exactly_the_data(samples: int, batch: int, seed: int, epochs: int) -> None:
    order = SampleOrder(samples, seed)
    steps = -(-samples * epochs // batch)
    row = np.concatenate([order.step(k, batch) for k in range(1, steps + 1)])
    assert row.dtype == np.int64
    for epoch in range(epochs):
        own = row[epoch * samples : (epoch + 1) * samples]
        assert sorted(own[:, 0]) == list(range(samples))
        assert set(own[:, 1]) == {epoch}


@given(samples=counts, batch=counts, k=st.integers(1, 200), history=st.lists(st.integers(1, 200), max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_step_does_not_depend_on_what_was_asked_before(samples: int, batch: int, k: int, history: list[int]) -> None:
    order = SampleOrder(samples, 7)
    for earlier in history:
        order.step(earlier, batch)
    assert order.step(k, batch).tolist() == SampleOrder(samples, 7).step(k, batch).tolist()


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = [permutation(100, seed, epoch).tolist() for seed in (0, 1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6
    assert permutation(8, 1, 0).tolist() == [3, 5, 2, 7, 0, 6, 1, 4]


def test_a_caller_cannot_change_the_order() -> None:
    order = SampleOrder(10, 1)
    first = order.step(1, 5)
    kept = first.tolist()
    first[:] = 0
    assert order.step(1, 5).tolist() == kept


@given(ranks=st.integers(1, 4), micro=st.integers(1, 5), accumulation=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_every_world_shares_out_the_same_step(ranks: int, micro: int, accumulation: int) -> None:
    indices = SampleOrder(37, 3).step(2, ranks * micro * accumulation)
    shares = [slice_of(indices, rank, ranks, micro, accumulation) for rank in range(ranks)]
    assert all(len(share) == accumulation and all(len(batch) == micro for batch in share) for share in shares)
    together = np.concatenate([share[a] for a in range(accumulation) for share in shares])
    assert together.tolist() == indices.tolist()
    with pytest.raises(ValueError):
        slice_of(indices[1:], 0, ranks, micro, accumulation)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_global_batch_is_the_same_samples_in_any_world(ranks: int) -> None:
    step = SampleOrder(100, 5).step(4, 24)
    shares = [slice_of(step, rank, ranks, 24 // ranks // 2, 2) for rank in range(ranks)]
    assert sorted(np.concatenate([np.concatenate(share) for share in shares]).tolist()) == sorted(step.tolist())


@given(samples=st.integers(0, 60), micro=st.integers(1, 9), ranks=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_held_out_samples_are_shared_out_once(samples: int, micro: int, ranks: int) -> None:
    shares = [eval_shares(samples, micro, rank, ranks) for rank in range(ranks)]
    assert sorted(index for share in shares for batch in share for index in batch.tolist()) == list(range(samples))
    assert all(1 <= len(batch) <= micro for share in shares for batch in share)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(samples=counts, batch=counts, steps=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_streams_read_on_and_begin_spread_over_the_text(samples: int, batch: int, steps: int) -> None:
    order = StreamOrder(samples)
    rows = [order.step(k, batch) for k in range(1, steps + 1)]
    assert rows[0][:, 0].tolist() == [stream * samples // batch for stream in range(batch)]
    for before, after in itertools.pairwise(rows):
        assert after[:, 0].tolist() == [(sample + 1) % samples for sample in before[:, 0]]
        assert (after[:, 1] - before[:, 1]).tolist() == [int(sample == 0) for sample in after[:, 0]]


def test_streams_of_equal_parts_read_each_sample_once_a_round() -> None:
    order = StreamOrder(24)
    seen = np.concatenate([order.step(k, 4) for k in range(1, 7)])[:, 0]
    assert sorted(seen) == list(range(24))
