"""Texts of like length come together, and each epoch is still every text once, whatever the ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_runner.data.parts.bucketing import WINDOW, BucketedOrder
from dml_runner.data.parts.order import SampleOrder, slice_of

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=300).map(lambda values: np.array(values, np.int64))
batches = st.integers(1, 12)


def row(order: BucketedOrder | SampleOrder, steps: int, batch: int) -> np.ndarray:
    return np.concatenate([order.step(k, batch) for k in range(1, steps + 1)])


@given(lengths=lengths, batch=batches, seed=st.integers(0, 2**70), epochs=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_each_epoch_is_exactly_the_data(lengths: np.ndarray, batch: int, seed: int, epochs: int) -> None:
    samples = len(lengths)
    found = row(BucketedOrder(lengths, seed), -(-samples * epochs // batch), batch)
    assert found.dtype == np.int64
    for epoch in range(epochs):
        own = found[epoch * samples : (epoch + 1) * samples]
        assert sorted(own[:, 0]) == list(range(samples))
        assert set(own[:, 1]) == {epoch}


@given(lengths=lengths, batch=batches, k=st.integers(1, 200), history=st.lists(st.integers(1, 200), max_size=6))
@settings(max_examples=80, deadline=None)
def test_a_step_does_not_depend_on_what_was_asked_before(lengths: np.ndarray, batch: int, k: int, history: list[int]) -> None:
    order = BucketedOrder(lengths, 7)
    for earlier in history:
        order.step(earlier, batch)
    assert order.step(k, batch).tolist() == BucketedOrder(lengths, 7).step(k, batch).tolist()


@given(lengths=lengths, ranks=st.integers(1, 4), micro=st.integers(1, 3), accumulation=st.integers(1, 3), k=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_every_world_shares_out_the_same_step(lengths: np.ndarray, ranks: int, micro: int, accumulation: int, k: int) -> None:
    picks = BucketedOrder(lengths, 3).step(k, ranks * micro * accumulation)
    shares = [slice_of(picks, rank, ranks, micro, accumulation) for rank in range(ranks)]
    assert np.concatenate([share[a] for a in range(accumulation) for share in shares]).tolist() == picks.tolist()


def test_a_window_holds_what_it_would_without_sorting() -> None:
    values = np.random.default_rng(0).integers(1, 60, 1000)
    batch = 4
    sorted_row, plain = row(BucketedOrder(values, 1), 5 * WINDOW, batch), row(SampleOrder(1000, 1), 5 * WINDOW, batch)
    for window in range(5):
        here = slice(window * WINDOW * batch, (window + 1) * WINDOW * batch)
        assert sorted(map(tuple, sorted_row[here])) == sorted(map(tuple, plain[here]))


def test_batches_are_of_like_length_and_come_in_no_order_of_length() -> None:
    values = np.random.default_rng(0).integers(1, 100, 32 * 64)
    order = BucketedOrder(values, 1)
    steps = [values[order.step(k, 32)[:, 0]] for k in range(1, 65)]
    assert max(int(step.max() - step.min()) for step in steps) <= 8
    means = np.array([step.mean() for step in steps])
    assert abs(np.corrcoef(means[:32], np.arange(32))[0, 1]) < 0.5
    assert [step.tolist() for step in steps] != [values[BucketedOrder(values, 2).step(k, 32)[:, 0]].tolist() for k in range(1, 65)]


def test_equal_lengths_are_shuffled_too() -> None:
    order = BucketedOrder(np.ones(100, np.int64), 5)
    first, second = row(order, 10, 10), row(order, 20, 10)[100:]
    assert first[:, 0].tolist() != second[:, 0].tolist()
    assert first[:, 0].tolist() != list(range(100))
