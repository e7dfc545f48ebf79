"""Codecs: a flat fp32 tensor as a message of fewer bytes, and back. A message says by itself how it was scaled.

Finite values come back finite, whatever their size. Where a value is not finite, its block (int8, onebit), its message (fp16)
or itself (bf16) comes back not finite, so that a run that diverges still shows it. Nothing here waits for a CUDA device.

All round to nearest. Stochastic rounding would need no memory of errors to be right on average, but its errors have twice the
variance, and its random numbers cost more than the rest and would have to be saved; a memory (memory.py) makes nearest right
on average too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from dml_runner.comm.wires.laws import BLOCKS, FP32, HEADER, encoded_bytes

CHUNK = 1 << 18
"""Values worked on at once: 1 MiB of fp32, which stays in a core's cache from one pass to the next."""

HUGE = 3.4e38
"""A little below fp32's largest: products with a rounded scale stay finite."""

TINY = 2.0**-100
"""A block of nothing larger is rounded to zero; 127 divided by less could be infinite."""


class Codec(Protocol):
    """A way to write fp32 values in fewer bytes."""

    name: str

    def size(self, values: int) -> int:
        """Bytes of the message that ``values`` numbers become."""

    def encode(self, flat: Tensor, out: Tensor | None = None) -> Tensor:
        """The message (uint8, one-dimensional, contiguous), in ``out`` if there is one; ``flat`` (fp32, likewise) stays as it is."""

    def decode(self, message: Tensor, values: int, out: Tensor | None = None) -> Tensor:
        """The ``values`` fp32 numbers in a message, in ``out`` (contiguous, fp32) if there is one."""


def open_codec(name: str) -> Codec:
    """The codec called fp16, bf16, int8 or onebit."""
    known: dict[str, type[Codec]] = {"fp16": Fp16, "bf16": Bf16, "int8": Int8, "onebit": OneBit}
    return known[name]()


class Bf16:
    """bfloat16: fp32's range in 8 significant bits. A finite value above the largest bf16 becomes that."""

    name = "bf16"
    largest = torch.finfo(torch.bfloat16).max

    def size(self, values: int) -> int:
        """2 bytes a value."""
        return encoded_bytes(self.name, values)

    def encode(self, flat: Tensor, out: Tensor | None = None) -> Tensor:
        """The values as bf16."""
        message = _message(self, flat, out)
        halves, (rounded, nothing) = self.halves(message), _scratch(flat, 2)
        for span in _chunks(flat, flat.numel()):
            here, width = flat[span], span.stop - span.start
            torch.clamp(here, -self.largest, self.largest, out=rounded[:width])
            torch.sub(here, here, out=nothing[:width])  # 0 where a value is finite, NaN elsewhere
            halves[span] = rounded[:width].add_(nothing[:width])
        return message

    def decode(self, message: Tensor, values: int, out: Tensor | None = None) -> Tensor:
        """The values of a message."""
        out = _room(message, values, out)
        return out.copy_(self.halves(_aligned(message)))

    def halves(self, message: Tensor) -> Tensor:
        """A message's values as they travel, a view."""
        return message.view(torch.bfloat16)


class Fp16:
    """float16 times one power of two a message: 11 significant bits down to 2^-29 of the message's largest value.

    A plain fp16 would turn gradients below 6e-8 into zero and those above 65504 into infinity. The factor, an fp32, stands first.
    """

    name = "fp16"

    def size(self, values: int) -> int:
        """2 bytes a value, and 4."""
        return encoded_bytes(self.name, values)

    def encode(self, flat: Tensor, out: Tensor | None = None, largest: Tensor | None = None) -> Tensor:
        """The values, scaled so that ``largest`` falls into fp16's upper half.

        Args:
            flat: one-dimensional fp32.
            out: where the message is written; None: into a new tensor.
            largest: of shape (1,), at least as large as any absolute value; None: the largest there is.
        """
        message = _message(self, flat, out)
        largest = largest_of(flat) if largest is None else largest
        up, down = self._factors(largest)
        message[: HEADER["fp16"]].view(torch.float32).copy_(down + (largest - largest))
        halves, (scaled,) = self.halves(message), _scratch(flat, 1)
        for span in _chunks(flat, flat.numel()):
            here = torch.mul(flat[span], up, out=scaled[: span.stop - span.start])
            halves[span] = here.clamp_(-32752, 32752)  # rounded up to 2^15 it could end beyond fp32's largest when scaled back
        return message

    def decode(self, message: Tensor, values: int, out: Tensor | None = None) -> Tensor:
        """The values of a message, in their own scale."""
        message = _aligned(message)
        out = _room(message, values, out)
        return out.copy_(self.halves(message)).mul_(message[: HEADER["fp16"]].view(torch.float32))

    def halves(self, message: Tensor) -> Tensor:
        """A message's values as they travel, a view."""
        return message[HEADER["fp16"] :].view(torch.float16)

    @staticmethod
    def _factors(largest: Tensor) -> tuple[Tensor, Tensor]:
        """The power of two that brings ``largest`` into [2^14, 2^15), as far as fp32 has one, and its inverse: made from bits, so exact."""
        exponent = largest.view(torch.int32) >> 23
        shift = (141 - exponent).clamp(max=120)
        return ((127 + shift) << 23).view(torch.float32), ((127 - shift) << 23).view(torch.float32)


class _Blocks(ABC):
    """Blocks of values with one fp32 scale each: all scales first, then the values in ``bits`` bits each."""

    name: str
    bits: int

    def __init__(self) -> None:
        self._block = BLOCKS[self.name]

    def size(self, values: int) -> int:
        """Bytes of scales and values."""
        return encoded_bytes(self.name, values)

    def encode(self, flat: Tensor, out: Tensor | None = None) -> Tensor:
        """Scales and rounded values."""
        values, block = flat.numel(), self._block
        message = _message(self, flat, out)
        scales, packed = self._split(message, values)
        whole = values // block * block
        (scratch,) = _scratch(flat, 1)
        for span in _chunks(flat, whole):
            blocks, of_blocks = flat[span].view(-1, block), slice(span.start // block, span.stop // block)
            self._pack(blocks, scales[of_blocks], packed[self._bytes(span)], block, scratch[: blocks.numel()].view_as(blocks))
        if whole < values:
            last, bytes_of_last = flat.new_zeros(1, block), packed.new_empty(block * self.bits // 8)
            last[0, : values - whole] = flat[whole:]
            self._pack(last, scales[-1:], bytes_of_last, values - whole, torch.empty_like(last))
            rest = packed[whole * self.bits // 8 :]
            rest.copy_(bytes_of_last[: rest.numel()])
        return message

    def decode(self, message: Tensor, values: int, out: Tensor | None = None) -> Tensor:
        """The rounded values times their scales."""
        block, out = self._block, _room(message, values, out)
        scales, packed = self._split(_aligned(message), values)
        whole = values // block * block
        for span in _chunks(out, whole):
            self._unpack(scales[span.start // block : span.stop // block], packed[self._bytes(span)], out[span].view(-1, block))
        if whole < values:
            last, rest = out.new_empty(1, block), packed[whole * self.bits // 8 :]
            bytes_of_last = packed.new_zeros(block * self.bits // 8)
            bytes_of_last[: rest.numel()] = rest
            self._unpack(scales[-1:], bytes_of_last, last)
            out[whole:] = last[0, : values - whole]
        return out

    @abstractmethod
    def _pack(self, blocks: Tensor, scales: Tensor, packed: Tensor, filled: int, scratch: Tensor) -> None:
        """Write the scales (m,) and bytes of ``blocks`` (m, block), of which the first ``filled`` count; ``scratch`` has their shape."""

    @abstractmethod
    def _unpack(self, scales: Tensor, packed: Tensor, blocks: Tensor) -> None:
        """The inverse."""

    def _split(self, message: Tensor, values: int) -> tuple[Tensor, Tensor]:
        scales = FP32 * -(-values // self._block)
        return message[:scales].view(torch.float32), message[scales:]

    def _bytes(self, span: slice) -> slice:
        return slice(span.start * self.bits // 8, span.stop * self.bits // 8)


class Int8(_Blocks):
    """Whole numbers from -127 to 127, rounded to nearest, times the largest of their block over 127 (Dettmers et al. 2022, section 2.1).

    An error is at most 1/254 of the largest value in its block.
    """

    name, bits = "int8", 8

    def _pack(self, blocks: Tensor, scales: Tensor, packed: Tensor, filled: int, scratch: Tensor) -> None:
        largest = _finite_or_nan(torch.abs(blocks, out=scratch).amax(1), TINY, HUGE)
        torch.div(largest, 127, out=scales)
        packed.view(torch.int8).view_as(blocks).copy_(torch.mul(blocks, (127 / largest)[:, None], out=scratch).round_())

    def _unpack(self, scales: Tensor, packed: Tensor, blocks: Tensor) -> None:
        torch.mul(packed.view(torch.int8).view_as(blocks), scales[:, None], out=blocks)


class OneBit(_Blocks):
    """A sign, times the mean absolute value of its block (Seide et al. 2014, section 3; Tang et al. 2021).

    That mean makes the squared error of a block least. Signs alone do not train: what is lost has to be added to what is
    sent next (memory.py). 0 counts as positive; a block of nothing else comes back as zeros.
    """

    name, bits = "onebit", 1

    def _pack(self, blocks: Tensor, scales: Tensor, packed: Tensor, filled: int, scratch: Tensor) -> None:
        # half the mean: a whole one of the largest values there are could round up to infinity
        half_mean = torch.mul(blocks, 0.5 / filled, out=scratch).abs_().sum(1)
        torch.mul(_finite_or_nan(half_mean, 0, HUGE / 2), 2, out=scales)
        # the product gathers the lowest bits of 8 bytes in the highest byte, the first of them lowest
        bits = torch.ge(blocks, 0, out=scratch.view(torch.bool).view(-1)[: blocks.numel()].view_as(blocks))
        packed.copy_(bits.view(-1).view(torch.int64).mul_(0x0102040810204080).bitwise_right_shift_(56))

    def _unpack(self, scales: Tensor, packed: Tensor, blocks: Tensor) -> None:
        torch.index_select(_signs(packed.device), 0, packed.int(), out=blocks.view(-1, 8))
        blocks.mul_(scales[:, None])


def largest_of(flat: Tensor) -> Tensor:
    """The largest absolute value, of shape (1,); 0 where there are none, NaN where one is NaN."""
    if not flat.numel():
        return flat.new_zeros(1)
    low, high = flat.aminmax()
    return torch.maximum(-low, high).view(1)


def _chunks(flat: Tensor, values: int) -> Iterator[slice]:
    """The first ``values`` of a tensor, in chunks; in one where launching a kernel costs more than a cache saves."""
    step = CHUNK if flat.device.type == "cpu" else max(values, 1)
    return (slice(start, min(start + step, values)) for start in range(0, values, step))


def _scratch(flat: Tensor, rows: int) -> Tensor:
    """Room for ``rows`` chunks, made once: fresh memory costs more than what is done in it."""
    return flat.new_empty(rows, min(flat.numel(), CHUNK) if flat.device.type == "cpu" else flat.numel())


def _message(codec: Codec, flat: Tensor, out: Tensor | None) -> Tensor:
    return flat.new_empty(codec.size(flat.numel()), dtype=torch.uint8) if out is None else out


def _room(message: Tensor, values: int, out: Tensor | None) -> Tensor:
    return message.new_empty(values, dtype=torch.float32) if out is None else out


def _aligned(message: Tensor) -> Tensor:
    """A message at an address where an fp32 may stand: it may be a piece of a longer one."""
    return message if message.storage_offset() % FP32 == 0 else message.clone()


def _finite_or_nan(values: Tensor, low: float, high: float) -> Tensor:
    """Values from 0 brought between the bounds; NaN for those that are not finite."""
    return values.clamp(low, high).add_(values - values)


@cache
def _signs(device: torch.device) -> Tensor:
    """(256, 8): the eight signs in each byte, the lowest bit first."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return bits * 2.0 - 1.0
