"""Codecs of low-bit wires: their bands, their messages against numpy's, and values of every size, finite and not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dml_runner.comm.wires.codecs import CHUNK, TINY, open_codec
from dml_runner.comm.wires.laws import BLOCKS, encoded_bytes
from dml_runner.comm.wires.memory import Memory

CODECS = ("fp16", "bf16", "int8", "onebit")
SIZES = (0, 1, 7, 8, 255, 256, 257, 1024, 1025, 5000, CHUNK, 2 * CHUNK + 1029)
HUGE = float(torch.finfo(torch.float32).max)


def values(count: int, spread: float = 1.0) -> Tensor:
    """Normal numbers whose size falls from block to block, so that a wrong scale shows."""
    blocks = torch.arange(count) // 256
    return torch.randn(count, generator=torch.Generator().manual_seed(count)) * spread**-blocks


def allowed(codec: str, flat: Tensor) -> Tensor:
    """The largest error of each value that rounding to nearest allows."""
    if codec in ("fp16", "bf16"):
        return flat.abs() * 2.0 ** (-11 if codec == "fp16" else -8) + flat.abs().max() * 2.0**-39 * (codec == "fp16")
    largest = torch.cat([block.abs().amax().expand(len(block)) for block in flat.split(BLOCKS["int8"])])
    return largest * (1 / 254 + 1e-6)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("name", CODECS)
def test_a_message_has_its_size_and_comes_back_within_the_band(name: str, count: int) -> None:
    codec, flat = open_codec(name), values(count, 1.01)
    before = flat.clone()
    message = codec.encode(flat)
    assert message.dtype == torch.uint8
    assert message.shape == (codec.size(count),) == (encoded_bytes(name, count),)
    back = codec.decode(message, count)
    assert back.dtype == torch.float32
    assert torch.equal(flat, before)
    if name == "onebit":
        means = [block.abs().double().mean().float().expand(len(block)) for block in flat.split(BLOCKS[name])] if count else [flat]
        torch.testing.assert_close(back, torch.where(flat >= 0, 1.0, -1.0) * torch.cat(means), rtol=1e-5, atol=0)
    elif count:
        assert bool(((back - flat).abs() <= allowed(name, flat)).all())


@pytest.mark.parametrize("name", CODECS)
def test_a_message_may_be_written_and_read_anywhere(name: str) -> None:
    codec, flat = open_codec(name), values(3001)
    message = codec.encode(flat)
    room = torch.full_like(message, 255)
    assert codec.encode(flat, room) is room
    assert torch.equal(room, message)
    out = torch.full((3001,), float("nan"))
    assert codec.decode(message, 3001, out=out) is out
    for start in range(9):
        longer = torch.cat((torch.zeros(start, dtype=torch.uint8), message))
        assert torch.equal(codec.decode(longer[start:], 3001), out), "in the middle of a longer message"


@pytest.mark.parametrize("count", [1, 255, 256, 1000, 2048, 2053])
def test_block_messages_are_what_numpy_makes(count: int) -> None:
    flat = values(count)
    array = flat.numpy()
    for name, block in BLOCKS.items():
        blocks = [array[start : start + block] for start in range(0, count, block)]
        message = open_codec(name).encode(flat).numpy()
        scales, rest = message[: 4 * len(blocks)].view(np.float32), message[4 * len(blocks) :]
        if name == "int8":
            largest = [np.abs(part).max() for part in blocks]
            expected = [np.rint(part * np.float32(127 / top)).astype(np.int8) for part, top in zip(blocks, largest, strict=True)]
            np.testing.assert_allclose(scales, np.array(largest) / 127, rtol=1e-6)
            assert np.abs(rest.view(np.int8).astype(int) - np.concatenate(expected)).max() <= 1  # a tie may fall either way
        else:
            np.testing.assert_allclose(scales, [np.abs(part).mean() for part in blocks], rtol=1e-5)
            assert np.unpackbits(rest, bitorder="little")[:count].tolist() == (array >= 0).tolist()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(numbers=st.lists(finite, min_size=1, max_size=40), copies=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_finite_values_of_any_size_stay_finite_and_no_larger(numbers: list[float], copies: int) -> None:
    flat = torch.tensor(numbers * copies)
    largest = flat.abs().max()
    for name in CODECS:
        back = open_codec(name).decode(open_codec(name).encode(flat), flat.numel())
        assert bool(back.isfinite().all()), name
        # in double precision: more than the largest fp32 cannot be written in it
        assert float(back.abs().max()) <= float(largest) * (1 + 2.0**-8) + 2 * TINY, name


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", [1, 5, 1024, 1500, CHUNK + 3])
def test_the_largest_values_of_all_stay_finite_and_zeros_stay_zero(name: str, count: int) -> None:
    codec = open_codec(name)
    back = codec.decode(codec.encode(torch.full((count,), -HUGE)), count)
    assert bool(back.isfinite().all())
    assert float(back.max()) < -0.99 * HUGE
    assert not codec.decode(codec.encode(torch.zeros(count)), count).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("place", [0, 300, CHUNK + 1100])
def test_what_is_not_finite_does_not_come_back_finite(name: str, bad: float, place: int) -> None:
    codec, flat = open_codec(name), values(CHUNK + 1101)
    flat[place] = bad
    back = codec.decode(codec.encode(flat), flat.numel())
    assert not back[place].isfinite()
    if name in BLOCKS:
        block = BLOCKS[name]
        spoilt = (~back.isfinite()).nonzero().flatten() // block
        assert spoilt.unique().tolist() == [place // block], "its block, and no other"


def test_fp16_keeps_what_a_plain_fp16_would_lose() -> None:
    codec = open_codec("fp16")
    for size in (1e-30, 1e-9, 1e9, 1e30):
        flat = values(1000) * size
        assert bool(((codec.decode(codec.encode(flat), 1000) - flat).abs() <= allowed("fp16", flat)).all())


@pytest.mark.parametrize("name", ["int8", "onebit"])
def test_a_memory_makes_the_sum_of_messages_right(name: str) -> None:
    codec, flat = open_codec(name), values(3000)
    totals = []
    for memory in (Memory(), Memory(feedback=False)):
        total = torch.zeros(3000)
        for _ in range(20):
            total += codec.decode(memory.encode(codec, "gradient", flat), 3000)
        left = dict(memory.state()).get("gradient", torch.zeros(3000))
        totals.append(float((total + left - 20 * flat).norm() / (20 * flat).norm()))
    right, wrong = totals
    assert right < 1e-6
    assert wrong > 1e-3


def test_a_memory_of_another_layout_is_refused() -> None:
    codec, memory = open_codec("int8"), Memory()
    memory.restore({"0/1": torch.zeros(3)})
    with pytest.raises(AssertionError, match=r"0/1 was remembered as \(3,\) and is \(4,\): another layout"):
        memory.encode(codec, "0/1", torch.zeros(4))
